"""docker/compose.yaml for real: an application, its sidecar and a client."""

from __future__ import annotations

import re

from .conftest import Engine


def test_the_client_sees_routing_and_splicing(engine: Engine) -> None:
    """`up` ends with the client's exit code, which is 0 only if every answer was right."""
    done = engine.compose(
        "up", "--no-color", "--abort-on-container-exit", "--exit-code-from", "client",
        DEMO_MUST_SPLICE="1",
    )  # fmt: skip
    told = [line.partition("|")[2].strip() for line in done.stdout.splitlines() if "client" in line]
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"GET /api/hello +200 by app",
        r"GET /api/hello +x-beta: 1 +200 by next",
        r"GET /old/page +301 to /new/page",
        r"GET /elsewhere +404 by l7proxy",
        r"POST /api, two lengths +400 by l7proxy",
        r"a conversation: 2000 messages of 8192 bytes echoed, \d+ us each",
        r"a download of 64 MiB at 1 Gbit/s, SHA-256 ok, .*",
        r"the conversation +kernel +\d+\.\d MiB, .*, +(9\d|100)\.\d % by the kernel",
        r"datapath sockmap: the kernel passed the self-test",
        r"demo: ok",
    ):
        assert any(re.fullmatch(line, one) for one in told), (line, told)
