"""`python -m depfuse` is `depfuse`."""

import os
import sys


def main() -> int:
    """Run the command line; an interruption ends it in one sentence, while it imports what it needs as well."""
    try:
        from depfuse.distributed.threads import chosen_by_work, considerate

        with chosen_by_work(os.environ):
            os.environ.update(considerate(os.environ))
            from depfuse.cli import main as run

            return run()
    except KeyboardInterrupt:
        print("depfuse: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
