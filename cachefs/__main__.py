"""``python -m cachefs`` is the command ``cachefs``."""

import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (the process's own, unless given) and return its exit code.

    What it takes is loaded in here: Ctrl-C meanwhile ends it as it does later, without a traceback.
    """
    try:
        from cachefs.cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
