"""One GET over a unix socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path


def read_stats(path: Path) -> Mapping[str, object]:
    """`/stats` of an l7proxy, or what went wrong under the key "error"."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(path))
            connection.sendall(b"GET /stats HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            answer = b""
            while more := connection.recv(65536):
                answer += more
        stats: Mapping[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return stats
    except (OSError, ValueError) as error:
        return {"error": str(error)}
