"""`l7proxy sidecar`: the rules that bring connections to transparent listeners."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from l7proxy.commands.common import PATH_HELP, Subparsers, print_json, told_if_unusable

if TYPE_CHECKING:
    from l7proxy.sidecar.plan import Plan
    from l7proxy.sidecar.state import State

_ABOUT = """\
Put nftables rules in place that bring connections of this network namespace to the transparent
listeners of a policy, take them away, or tell what is in place. TCP alone is touched; connections
over loopback, those of l7proxy's own user, and those that are there already are left alone. All of
it is one table, `inet l7proxy`, and for TPROXY one routing rule and one route for each family.
"""

_EXAMPLES = """\
examples:
  l7proxy sidecar enable policy.yaml --dry-run          show the rules
  sudo l7proxy sidecar enable policy.yaml               put them in place, or in place of older ones
  sudo l7proxy sidecar enable policy.yaml --user 1337   workers run as 1337
  sudo l7proxy sidecar status policy.yaml               what is there, and does it fit this policy?
  sudo l7proxy sidecar disable                          take all of it away

exit codes:
  0  done; of status: in place, and it fits the policy if one was named
  1  it could not be done, or looked at
  3  of status: nothing is in place
  4  of status: what is in place is for another policy, or was changed
"""

EXIT_NOTHING = 3
EXIT_DIFFERS = 4


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    sidecar = commands.add_parser(
        "sidecar",
        help="bring the connections of this network namespace to transparent listeners",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = sidecar.add_subparsers(title="commands", metavar="COMMAND", required=True)
    enable = verbs.add_parser("enable", help="put the rules in place, in one step")
    enable.add_argument("policy", metavar="PATH", help=PATH_HELP)
    _how(enable)
    enable.add_argument("--dry-run", action="store_true", help="only print them")
    enable.set_defaults(command=_enable)
    disable = verbs.add_parser("disable", help="take them away, without a trace")
    disable.set_defaults(command=_disable)
    status = verbs.add_parser("status", help="tell what is in place, and whether it fits")
    status.add_argument("policy", metavar="PATH", nargs="?", help=f"{PATH_HELP}: to compare with")
    _how(status)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(command=_status)


def _how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="USER",
        help="whom l7proxy's workers run as, by name or number: what they dial is left alone"
        " (default: as `run` chooses: nobody for root, else you); may be repeated",
    )
    parser.add_argument(
        "--except-ports",
        type=_ports,
        default=(),
        metavar="PORTS",
        help="ports that are left alone in both directions, such as 22,9901",
    )
    parser.add_argument(
        "--mark",
        type=_mark,
        default=None,
        metavar="BIT",
        help="the bit of packets that TPROXY uses (default: 0x40)",
    )


def _enable(options: argparse.Namespace) -> int:
    from l7proxy.sidecar import marked, state
    from l7proxy.sidecar.ruleset import ruleset

    plan = _plan(options)
    if plan is None:
        return 1
    if options.dry_run:
        print(ruleset(plan), end="")
        if plan.marks:
            mark = f"{plan.mark:#x}/{plan.mark:#x}"
            for family in ("-4", "-6"):
                print(
                    f"# ip {family} rule add priority {marked.PRIORITY} fwmark {mark}"
                    f" lookup {marked.TABLE} protocol {marked.PROTOCOL}\n"
                    f"# ip {family} route add local default dev lo table {marked.TABLE}"
                    f" protocol {marked.PROTOCOL}"
                )
        return 0
    state.enable(plan)
    found = state.look(plan)
    print(_text(found))
    return 0


def _disable(_options: argparse.Namespace) -> int:
    from l7proxy.sidecar import state

    print("taken away" if state.disable() else "nothing was in place")
    return 0


def _status(options: argparse.Namespace) -> int:
    from l7proxy.sidecar import state
    from l7proxy.sidecar.state import Fit

    plan = None
    if options.policy is not None:
        plan = _plan(options)
        if plan is None:
            return 1
    found = state.look(plan)
    if options.json:
        print_json(found.as_dict())
    else:
        print(_text(found))
    if found.fit is Fit.NOTHING:
        return EXIT_NOTHING
    return 0 if found.fit in (Fit.FITS, Fit.IN_PLACE) else EXIT_DIFFERS


def _plan(options: argparse.Namespace) -> Plan | None:
    """None when the policy has errors, which are printed."""
    from l7proxy import config
    from l7proxy.sidecar.plan import MARK, plan

    report = config.check(options.policy)
    if told_if_unusable(report):
        return None
    assert report.policy is not None
    mark = MARK if options.mark is None else options.mark
    return plan(report.policy, options.user, options.except_ports, mark)


def _text(found: State) -> str:
    from l7proxy.sidecar.state import Fit

    said = {
        Fit.NOTHING: "nothing is in place",
        Fit.FITS: "in place, as this policy asks for",
        Fit.IN_PLACE: "in place",
        Fit.DIFFERS: "in place, and differs",
        Fit.CHANGED: "in place, and changed",
    }[found.fit]
    lines = [f"{said}: {found.why}" if found.why else said]
    lines += [f"  {name}: {count:,} connections" for name, count in found.taken.items()]
    for name in found.silent:
        print(
            f"l7proxy: nobody listens for {name} yet: until l7proxy runs, its connections are"
            " refused",
            file=sys.stderr,
        )
    return "\n".join(lines)


def _ports(text: str) -> tuple[int, ...]:
    try:
        ports = tuple(int(one) for one in text.split(","))
    except ValueError:
        ports = (0,)
    if not all(0 < port < 65536 for port in ports):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ports such as 22,9901")
    return ports


def _mark(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if not 0 < value < 1 << 32 or value & (value - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no single bit such as 0x40")
    return value
