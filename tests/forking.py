"""Another process for a moment: memory that is shared is shared with it."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_child(body: Callable[[], None]) -> None:
    """Run in another process, to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
