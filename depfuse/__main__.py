"""`python -m depfuse` is `depfuse`."""

import sys

from depfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
