"""`l7proxy run`: puts the parts together. Everything privileged happens here, before the fork.

Order: policy, rights, datapath, listeners, BPF objects, counters, access log; then the supervisor,
whose workers inherit all of it; then the admin server, which they must not.
"""

from __future__ import annotations

import asyncio
import codecs
import importlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from l7proxy import prober, worker
from l7proxy.admin import Admin, Router, add_page
from l7proxy.admin.places import Place, open_places
from l7proxy.config.fingerprint import Fingerprint, fingerprint
from l7proxy.errors import StartupError
from l7proxy.net import bundle, privileges
from l7proxy.net.activation import Activation
from l7proxy.net.channel import Channel, Received
from l7proxy.net.messages import FROM_PROBER, FROM_WORKER, Dropped, Rotated, Stop
from l7proxy.net.systemd import Manager, take_passed
from l7proxy.supervisor import loading
from l7proxy.supervisor.guarded import Guarded
from l7proxy.supervisor.inquiry import Inquiry
from l7proxy.supervisor.keeper import Keeper
from l7proxy.supervisor.managing import Managing
from l7proxy.supervisor.operations import Operations
from l7proxy.supervisor.probing import Backends
from l7proxy.supervisor.reload import NAMES_SECONDS, Reloader
from l7proxy.supervisor.scraping import Boards, Scraper
from l7proxy.supervisor.serving import tell
from l7proxy.supervisor.stats import collect
from l7proxy.supervisor.storing import restore, store
from l7proxy.supervisor.succession import Heritage, bequeath
from l7proxy.supervisor.upgrading import LEAVE_SECONDS, Upgrader
from l7proxy.supervisor.watching import watch
from l7proxy.supervisor.way import Way, choose, load, room
from l7proxy.supervisor.workers import AWAITED, EXIT_FAILED, Supervisor
from l7proxy.telemetry import log as operational
from l7proxy.telemetry.accesslog import AccessLog
from l7proxy.telemetry.condition import condition
from l7proxy.telemetry.counters import Counter, Rows, SharedCounters
from l7proxy.telemetry.health import HealthBoard
from l7proxy.telemetry.log import event
from l7proxy.telemetry.metered import Metered

log = logging.getLogger(__name__)

_WATCH_SECONDS = 5.0
_KEEPER_RESERVE = 512  # descriptors of the supervisor that are no kept sockets
_MOST_KEPT = 1 << 20
_SUCCESSION_SECONDS = 0.3  # until the l7proxy before has closed its admin server, usually


@dataclass(frozen=True, slots=True)
class Options:
    """What `l7proxy run` was asked for."""

    policy: str
    workers: int | None = None
    datapath: str = "auto"
    admin: tuple[str, ...] | None = None  # None: where it is by default
    admin_token_file: str | None = None
    access_log: str = "-"
    drain_delay: float = 0.0
    drain_seconds: float = 30.0
    drain_idle: float = 1.0
    user: str | None = None
    log_level: str = "info"
    watch: bool = False
    keep_in_store: bool = False


@dataclass(frozen=True, slots=True)
class _Parts:
    """What `run` has put together, for the time in which it serves."""

    options: Options
    supervisor: Supervisor
    reloader: Reloader
    inquiry: Inquiry
    way: Way
    shared: SharedCounters
    boards: Boards
    backends: Backends
    seen: Fingerprint
    managing: Managing
    keeper: Keeper
    pairs: int
    upgrader: Upgrader
    heritage: Heritage | None
    guarded: Guarded | None


def run(options: Options) -> int:
    """Run until stopped; the exit code. Raises StartupError when it cannot start as asked."""
    operational.configure(options.log_level)
    # Until there is somebody to hear it: see `Supervisor.run`. A policy that changes while we start
    # is then loaded at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    manager, passed, guarded = Manager.take(), take_passed(), Guarded.take()
    heritage = Heritage.take() or restore(passed, manager)
    activation = Activation(passed) if heritage is None else heritage.activation
    seen = fingerprint(options.policy)
    first = loading.load(options.policy)
    if first.text:
        print(first.text, file=sys.stderr, flush=True)
    if first.policy < 0:
        return EXIT_FAILED
    privileges.use_permitted()
    account = privileges.account(options.user)
    workers = options.workers or len(os.sched_getaffinity(0))
    if heritage is not None:  # each worker before has left its pairs to one of the same slot
        workers = max(workers, len(heritage.splicers))
    _, files = privileges.raise_nofile()
    wanted = choose(options.datapath)
    shared = SharedCounters(workers)
    boards = Boards.make(workers)
    health = HealthBoard(workers + 2)  # a slot for each worker, the prober, and the supervisor
    reloader = Reloader(options.policy, first, Rows(shared), activation)
    reloader.user = None if account is None else account.uid
    if heritage is not None:
        heritage.settle(iter(reloader.serving.sockets.values()))
    else:
        for unused in activation.unused(reloader.serving.manifest.listeners):
            log.warning(
                event("a socket was passed that no listener of the policy has", socket=unused)
            )
    pairs = room(reloader.serving.manifest.listeners, workers, files)
    left = () if heritage is None else heritage.splicers
    if left and heritage is not None:
        pairs = heritage.pairs
    way = load(wanted, options.datapath, workers, pairs, left)
    if way.splicers:
        limits = sum(one.limits.connections for one in reloader.serving.manifest.listeners)
        reloader.pairs = max(limits, pairs * workers)
    metered = [Metered(pairs) for _ in range(workers)]
    # as many descriptors again as all that is not kept may need
    keeper = Keeper(
        workers, pairs, max(0, files - _KEEPER_RESERVE) // 2 if files > 0 else _MOST_KEPT, guarded
    )
    access_log = AccessLog.open(options.access_log)

    # Python imports codecs when they are first used, and the workers' user may not be able to read
    # an installation below /root. The engine for patterns may be needed by a later policy only.
    for codec in ("ascii", "latin-1", "utf-8"):
        codecs.lookup(codec)
    importlib.import_module("re2")

    def child(slot: int, control_fd: int) -> int:
        privileges.drop(account)
        way.keep(slot)
        serving = reloader.serving
        setup = worker.WorkerSetup(
            slot=slot,
            policy=bundle.unpack(serving.policy),
            prepare=serving.prepare,
            sockets={number: one.sock for number, one in serving.sockets.items()},
            splicer=way.splicer(slot),
            datapath=way.datapath,
            counters=shared.slot(slot),
            meter=boards.meter(slot, shared.slot(slot).view),
            metered=metered[slot],
            access_log=access_log,
            control_fd=control_fd,
            health=health.slot(slot),
            resolved=reloader.resolved,
            drain_idle=options.drain_idle,
            kept=keeper.of(slot),
        )
        os.close(serving.policy)
        return worker.run(setup)

    def probe(control_fd: int) -> int:
        privileges.drop(account)
        way.keep(None)
        serving = reloader.serving
        for one in serving.sockets.values():
            one.sock.close()
        backends = bundle.backends(serving.policy)
        os.close(serving.policy)
        return prober.run(
            prober.ProberSetup(backends, health.slot(workers), control_fd, reloader.resolved)
        )

    inquiry = Inquiry()

    def hear(slot: int, message: object) -> None:
        if not inquiry.on_message(slot, message):
            reloader.on_message(slot, message)

    def ended(slot: int) -> int:
        reloader.on_exit(slot)
        inquiry.on_exit(slot)
        health.reconcile(slot)
        if slot >= workers:
            return 0  # the prober has no connections
        boards.reconcile(slot)
        if supervisor.is_closing:
            keeper.drop(slot)
        return shared.reconcile(slot, keeper.orphaned(slot))

    def received(slot: int, one: Received) -> bool:
        answers = keeper.hear(slot, one)
        for answer in answers or ():
            supervisor.send(slot, answer)
        return answers is not None

    def hangup() -> None:
        log.info(event("reloading", why="SIGHUP"))
        reloader.request()

    def rotated() -> None:
        try:
            found = access_log.reopen()
        except StartupError as error:
            log.error(event("the access log goes on in its old file", why=error))
            return
        if found is None:
            log.info("SIGUSR1: the access log is no file of its own, nothing is opened again")
            return
        path, fd = found
        supervisor.send_workers(Rotated(), [fd])
        log.info(event("access log opened again", file=path))

    def upgrade() -> None:
        upgrader.request()

    async def give_to_store() -> None:
        await supervisor.give_way(LEAVE_SECONDS)
        named = [(listener.name, one) for listener, one in reloader.serving.listeners()]
        if store(manager, keeper, named, way.splicers, pairs):
            log.info(event("stored", pairs=keeper.total, listeners=len(named)))
            for _, one in named:
                one.file = None
            supervisor.finish()
        else:
            log.error("the service manager does not store: spliced connections are reset")
            supervisor.drain()

    def terminated() -> bool:
        """SIGTERM; whether it is looked after."""
        if not options.keep_in_store or not manager.is_there:
            return False
        log.info(event("going into the store", connections=shared.active()))
        storing.append(asyncio.get_running_loop().create_task(give_to_store()))
        return True

    storing: list[asyncio.Task[None]] = []

    def drain() -> None:
        managing.stopping()
        reloader.stop()
        if guarded is not None:
            guarded.farewell()

    apart: frozenset[int] = frozenset()  # of this process alone
    if guarded is not None:
        apart |= guarded.descriptors
    if heritage is not None and heritage.channel is not None:
        apart |= {heritage.channel.fileno()}
    supervisor = reloader.supervisor = inquiry.supervisor = Supervisor(
        workers,
        child,
        drain_delay=options.drain_delay,
        drain_seconds=options.drain_seconds,
        prober=probe,
        accepts=FROM_WORKER,
        prober_accepts=FROM_PROBER,
        inherited=reloader.inherited,
        apart=apart,
        on_start=reloader.on_start,
        bequeathed=keeper.descriptors,
        on_message=hear,
        on_received=received,
        on_exit=ended,
        on_drain=drain,
        on_hangup=hangup,
        on_rotated=rotated,
        stop_message=Stop(),
        on_upgrade=upgrade,
        on_terminated=terminated,
        active=shared.active,
        present=lambda: reloader.serving.present(shared),
        resets=partial(shared.total, Counter.ERROR_DRAIN_DEADLINE),
    )
    managing = Managing(
        manager,
        lambda: (
            f"{shared.active()} connections, {shared.spliced()} spliced; policy"
            f" {reloader.serving.number}, {way.datapath}"
        ),
        lambda: supervisor.draining,
    )
    upgrader = Upgrader(supervisor, reloader, keeper, way.splicers, pairs, manager, guarded)
    reloader.on_request = managing.reloading
    backends = Backends(health.slot(workers + 1))
    parts = _Parts(
        options=options,
        supervisor=supervisor,
        reloader=reloader,
        inquiry=inquiry,
        way=way,
        shared=shared,
        boards=boards,
        backends=backends,
        seen=seen,
        managing=managing,
        keeper=keeper,
        pairs=pairs,
        upgrader=upgrader,
        heritage=heritage,
        guarded=guarded,
    )
    code = asyncio.run(_serve(parts))
    if guarded is not None:
        guarded.leave()
    return code


async def _serve(parts: _Parts) -> int:
    options, supervisor, reloader = parts.options, parts.supervisor, parts.reloader
    way, shared, keeper = parts.way, parts.shared, parts.keeper
    heritage, managing, guarded = parts.heritage, parts.managing, parts.guarded
    begun = time.monotonic()

    def stats() -> dict[str, Any]:
        found = collect(supervisor, reloader, way, shared, time.monotonic() - begun)
        found["kept"] = {"pairs": keeper.total, "adopted": shared.total(Counter.ADOPTED)}
        if guarded is not None:
            found["kept"]["guarded"] = guarded.pairs if guarded.is_there else None
        found |= {"backends": groups()}
        return found | {"condition": condition(found)}

    def take_place(guarded: Guarded, heritage: Heritage) -> None:
        """What came from the l7proxy before, the guardian has; what came from a store, not yet."""
        for slot in range(supervisor.configured):
            for index, one in keeper.of(slot).items():
                if heritage.channel is None:
                    guarded.keep(slot, index, one)
                else:
                    guarded.has(slot, index)
        if heritage.channel is not None:
            guarded.await_installed()

    def groups() -> dict[str, Any]:
        serving = reloader.serving
        return parts.backends.stats(serving.number, serving.policy, reloader.resolved)

    def tell_estate(end: Channel) -> None:
        named = ((listener.name, one) for listener, one in reloader.serving.listeners())
        bequeath(end, named, way.splicers, parts.pairs)

    async def first() -> None:
        if guarded is not None:
            guarded.tell(tell_estate)
        if heritage is not None:
            heritage.enter(keeper)
            if guarded is not None:
                take_place(guarded, heritage)
            for slot in range(supervisor.configured if not way.splicers else 0):
                keeper.drop(slot)  # nothing is spliced here, so nobody can adopt it
            for slot in range(supervisor.configured):
                shared.inherit(slot, len(keeper.of(slot)))
        serving = reloader.serving
        supervisor.probe(wanted=serving.manifest.probing)
        names = serving.manifest.names
        await supervisor.until(
            lambda: names <= reloader.resolved.keys() or supervisor.draining, NAMES_SECONDS
        )

    def ready() -> None:
        for listener, one in reloader.serving.listeners():
            tell(listener, one)
        entered.set()
        log.info(event("ready", datapath=way.datapath, workers=supervisor.configured))
        managing.ready()

    router = Router()
    Operations(supervisor, reloader, parts.inquiry, parts.upgrader, stats).add_to(router)
    Scraper(
        supervisor,
        reloader,
        shared,
        parts.boards,
        way.splicers,
        way.datapath,
        groups,
        lambda: keeper.total,
    ).add_to(router)
    add_page(router)
    admin = Admin(router)
    places: list[Place] = []
    replaces = heritage is not None and heritage.channel is not None
    entered = asyncio.Event()

    async def open_admin() -> None:
        """Where another l7proxy was until now, it may take a while to go."""
        while replaces:
            await entered.wait()
            await asyncio.sleep(_SUCCESSION_SECONDS)
            try:
                found = open_places(options.admin, options.admin_token_file, insists=True)
                places.extend(found)
                break
            except StartupError as error:
                log.debug(event("no admin server yet", why=error))
        else:
            places.extend(open_places(options.admin, options.admin_token_file))
        for place in places:
            await admin.start(place.socket.sock, place.guard)
            log.info(event("admin", address=place.socket.text))

    beside = [asyncio.create_task(_watch(shared)), asyncio.create_task(managing.beat())]
    if options.watch:
        beside.append(asyncio.create_task(watch(options.policy, parts.seen, reloader.request)))
    if guarded is not None:
        guarded.on_free = lambda slot, free: supervisor.send(slot, Dropped(free))
        reloader.on_sockets = partial(guarded.renew, tell_estate)
        guarded.attach()
    try:
        if not replaces:
            await open_admin()
        else:
            beside.append(asyncio.create_task(open_admin()))
        return await supervisor.run(ready, first)
    finally:
        if guarded is not None:
            guarded.detach()
        for task in beside:
            task.cancel()
        await admin.close()
        for place in places:
            place.socket.remove()


async def _watch(shared: SharedCounters) -> None:
    """Say so when lines of the access log are lost: nothing else would tell."""
    told = 0
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        dropped = shared.total(Counter.LOG_DROPPED)
        if dropped > told:
            log.warning(
                event("access log lines dropped: its reader is too slow", lines=dropped - told)
            )
        told = dropped
