"""`python -m l7proxy`."""

import sys

from l7proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
