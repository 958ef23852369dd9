"""The plan and the ruleset of the sidecar, without a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from l7proxy import cli
from l7proxy.config import check_text
from l7proxy.routing import chosen
from l7proxy.sidecar import SidecarError
from l7proxy.sidecar.plan import Plan, plan
from l7proxy.sidecar.ruleset import of, ruleset
from l7proxy.sidecar.state import _expected

ROUTES = "routes: [{name: all, backendRefs: [{name: passthrough}]}]\n"


def made(listeners: str, *users: str, untouched: tuple[int, ...] = ()) -> Plan:
    report = check_text(f"listeners:\n{listeners}\n{ROUTES}")
    assert report.policy is not None, report.render()
    return plan(report.policy, users or ("1337",), untouched)


def chains(text: str) -> dict[str, list[str]]:
    """The rules of each chain, its hook first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("\tchain "):
            rules = found[line.split()[1]] = []
        elif line.startswith("\t\t"):
            rules.append(line.strip())
    return found


def test_outbound_by_redirect() -> None:
    found = chains(
        ruleset(
            made(
                """\
  out:
    address: "*:15001"
    transparent:
      mode: redirect
      direction: outbound
      exceptPorts: [22]
      exceptBlocks: [10.0.0.0/8, 10.1.0.0/16, "fd00::/8"]
      exceptUsers: [1000, 0]""",
                untouched=(9901,),
            )
        )
    )
    comment = found["redirect-outbound"][1].partition(" comment ")[2]
    assert found == {
        "redirect-outbound": [
            "type nat hook output priority -101; policy accept;",
            f"meta l4proto != tcp accept comment {comment}",
            'oifname "lo" accept',
            "tcp flags & (fin | syn | rst | ack) != syn accept",
            "meta skuid { 1337 } accept",
            "tcp dport { 9901 } accept",
            "jump redirect-outbound-out",
        ],
        "redirect-outbound-out": [
            "meta skuid { 0, 1000 } return",
            "tcp dport { 22, 53 } return",
            "ip daddr { 10.0.0.0/8 } return",  # nft takes no overlaps
            "ip6 daddr { fd00::/8 } return",
            "meta l4proto tcp counter redirect to :15001",
        ],
    }


def test_inbound_by_redirect_of_one_family() -> None:
    found = chains(
        ruleset(
            made(
                """\
  in:
    address: 0.0.0.0:15006
    transparent: {mode: redirect, direction: inbound, exceptBlocks: [192.0.2.0/24]}
  plain: {address: 127.0.0.1:8080, protocol: TCP}
  free: {address: 127.0.0.1:0}
  local: {address: unix:/run/x.sock}"""
            )
        )
    )
    assert found["redirect-inbound"][2:] == [
        'iifname "lo" accept',
        "tcp flags & (fin | syn | rst | ack) != syn accept",
        "fib daddr type != local accept",
        "tcp dport { 8080 } accept",
        "jump redirect-inbound-in",
    ]
    assert found["redirect-inbound-in"] == [
        "tcp dport { 53 } return",
        "ip saddr { 192.0.2.0/24 } return",
        "meta nfproto ipv4 meta l4proto tcp counter redirect to :15006",
    ]


def test_a_listener_for_a_port_is_asked_first() -> None:
    found = chains(
        ruleset(
            made(
                """\
  rest: {address: "*:1", transparent: redirect}
  dns: {address: "*:2", protocol: TCP, transparent: {mode: redirect, ports: [53]}}"""
            )
        )
    )
    jumps = ["tcp dport { 53 } jump redirect-outbound-dns", "jump redirect-outbound-rest"]
    assert found["redirect-outbound"][-2:] == jumps
    assert found["redirect-outbound-dns"] == ["meta l4proto tcp counter redirect to :2"]
    assert "redirect-inbound-rest" in found


def test_tproxy_in_both_directions() -> None:
    found = chains(
        ruleset(
            made(
                """\
  both: {address: "*:15001", transparent: {mode: tproxy, keepClientAddress: true}}
  six: {address: "[::1]:15002", transparent: {mode: tproxy, direction: inbound, ports: [80]}}
  four: {address: 0.0.0.0:15003, transparent: {mode: tproxy, direction: inbound, ports: [81]}}"""
            )
        )
    )
    mark = "meta mark set meta mark | 0x40"
    assert found["outgoing"][2:] == [
        "tcp flags & (fin | syn | rst | ack) == syn meta skuid { 1337 } fib saddr type != local"
        " ct mark set ct mark | 0x40 accept",
        f"ct mark & 0x40 == 0x40 {mark} accept",
        'oifname "lo" accept',
        "tcp flags & (fin | syn | rst | ack) != syn accept",
        "meta skuid { 1337 } accept",
        "jump mark-outbound-both",
    ]
    assert found["mark-outbound-both"] == [
        "tcp dport { 53 } return",
        f"ct mark set ct mark | 0x40 {mark} accept",
    ]
    assert found["incoming"][2:5] == [
        f"socket transparent 1 socket wildcard 0 {mark} accept",
        'iifname "lo" meta mark & 0x40 == 0x40 tcp flags & (fin | syn | rst | ack) == syn'
        " jump tproxy-outbound-both",
        'iifname "lo" accept',
    ]
    assert found["tproxy-inbound-six"] == [
        f"meta nfproto ipv6 meta l4proto tcp counter tproxy ip6 to [::1]:15002 {mark} accept"
    ]
    assert found["tproxy-inbound-four"] == [
        f"meta nfproto ipv4 meta l4proto tcp counter tproxy ip to :15003 {mark} accept"
    ]
    assert found["tproxy-inbound-both"][-1] == (
        f"meta l4proto tcp counter tproxy to :15001 {mark} accept"
    )


def test_users_that_differ_where_tproxy_cannot_tell() -> None:
    with pytest.raises(SidecarError, match="listeners b and a take outbound connections"):
        made(
            """\
  a: {address: "*:1", transparent: {mode: tproxy, direction: outbound, exceptUsers: [0]}}
  b: {address: "*:2", transparent: {mode: tproxy, direction: outbound, ports: [80]}}"""
        )


def test_nothing_to_intercept() -> None:
    report = check_text(
        "listeners: {web: {address: 127.0.0.1:1}}\nroutes: [{name: a, respond: 404}]\n"
    )
    assert report.policy is not None
    with pytest.raises(SidecarError, match="no listener of this policy is transparent"):
        plan(report.policy)


def test_users() -> None:
    listener = '  a: {address: "*:1", transparent: {mode: redirect, exceptUsers: [nobody-at-all]}}'
    with pytest.raises(SidecarError, match="there is no user nobody-at-all"):
        made(listener)
    usual = made('  a: {address: "*:1", transparent: redirect}', "root", "0", "7")
    assert usual.users == (0, 7)
    report = check_text(f'listeners: {{a: {{address: "*:1", transparent: redirect}}}}\n{ROUTES}')
    assert report.policy is not None
    assert plan(report.policy).users == ((65534,) if os.geteuid() == 0 else (os.geteuid(),))


def test_a_ruleset_is_known_by_what_it_says() -> None:
    one = ruleset(made('  a: {address: "*:1", transparent: redirect}'))
    same = ruleset(made('  a: {address: "*:1", transparent: {mode: redirect, direction: both}}'))
    other = ruleset(made('  a: {address: "*:2", transparent: redirect}'))
    assert of(one) == of(same) != of(other)
    assert of(one).startswith("l7proxy ")
    assert _expected(one)["redirect-outbound-a"] == 2


def test_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--except-ports=22,", "--except-ports=0", "--mark=0x41", "--mark=x"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sidecar", "enable", "p.yaml", wrong])
        assert stop.value.code == 2
    assert "is no single bit such as 0x40" in capsys.readouterr().err


SAMPLE = "policies/sidecar-interception.yaml"


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(arguments) == code
    output = capsys.readouterr()
    return output.out + output.err


def test_explain_goes_by_destination(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "explain", SAMPLE, "tcp", "outbound", "--destination", "10.1.2.3:5432")
    assert "route     database at " in text
    assert "match     destination 10.0.0.0/8:5432 or [fd00::/8]:5432 at " in text
    assert "(unmatched): its priority is -1000001, the winner's 0" in text
    text = said(capsys, "explain", SAMPLE, "tcp", "outbound", "--destination", "[2001:db8::1]:443")
    assert "route     (unmatched), which comes with a transparent listener" in text
    assert "goes to   passthrough 100%: [2001:db8::1]:443" in text
    assert "it is for 10.0.0.0/8:5432, [fd00::/8]:5432, and the connection" in text


def test_explain_wants_to_know_the_destination(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "explain", SAMPLE, "tcp", "outbound", code=1)
    assert "say so with --destination" in text
    plain = tmp_path / "plain.yaml"
    plain.write_text(
        "listeners: {raw: {address: 127.0.0.1:1, protocol: TCP}}\n"
        "routes: [{name: all, backendRefs: [{name: app}]}]\n"
        "backends: {app: {endpoints: [127.0.0.1:2]}}\n"
    )
    asked = ("explain", str(plain), "tcp", "raw", "--destination", "10.0.0.1:1")
    assert "listener raw is not transparent" in said(capsys, *asked, code=1)


def test_diff_asks_for_destinations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    text = Path(SAMPLE).read_text()
    other.write_text(
        text.replace('"10.0.0.0/8:5432"', '"10.0.0.0/9:5432"').replace("[22]", "[22, 23]")
    )
    found = said(capsys, "diff", SAMPLE, str(other), code=1)
    assert "transparent.exceptPorts: [22] -> [22, 23]" in found
    assert "database (backend pooler) -> (unmatched) (backend passthrough)" in found
    assert "a connection to 10.255.255.255:5432" in found


def test_a_listener_that_only_goes_by_destination_splices_whole_connections() -> None:
    report = check_text(
        """\
listeners: {out: {address: "*:1", transparent: redirect}}
routes: [{name: db, matches: [{destinations: ["*:81"]}], backendRefs: [{name: app}]}]
backends: {app: {endpoints: [127.0.0.1:9000]}}
"""
    )
    assert report.policy is not None
    choice = chosen(report.policy, report.policy.listeners["out"])
    assert {str(one.mode) for one in choice.values()} == {"connection"}
    assert "were going to the same place" in choice["db"].why
