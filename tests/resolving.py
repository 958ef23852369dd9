"""`l7proxy` with a name server of the test's own: a file, read anew for each lookup.

    python -m tests.resolving FILE run policy.yaml ...

The file is JSON: {"app.test": ["127.0.0.1", "::1"]}; a name that is not in it is not resolved.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from l7proxy import cli
from l7proxy.prober import names
from l7proxy.supervisor import launch, reload


def main(file: str, arguments: list[str]) -> int:
    async def resolve(name: str) -> Sequence[str]:
        known = json.loads(Path(file).read_text())
        if name not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found: list[str] = known[name]
        return found

    names.resolve = resolve
    # this name server always knows: on a machine that stands still it is waited for longer
    launch.NAMES_SECONDS = reload.NAMES_SECONDS = 30.0
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
