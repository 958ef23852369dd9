"""Entry point of `python -m l7proxy.demo`."""

from __future__ import annotations

import sys

from l7proxy.demo.show import main

sys.exit(main())
