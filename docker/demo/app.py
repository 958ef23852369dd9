"""The application of ../compose.yaml: two versions of an HTTP server and an echo, on loopback.

Nobody reaches them but through the sidecar.
"""

from __future__ import annotations

import signal

from l7proxy.demo.backends import Backends
from l7proxy.model import Address

with Backends() as backends:
    backends.start_http("app", Address("127.0.0.1", 3000))
    backends.start_http("next", Address("127.0.0.1", 3001))
    backends.start_echo("echo", Address("127.0.0.1", 3002))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
