"""``python -m leanrecon`` and the command ``leanrecon``."""

import sys


def start() -> None:
    """Run the command line. Ctrl-C while its modules are read ends it as later: with one sentence and exit code 130."""
    try:
        from leanrecon.app.cli import main
    except KeyboardInterrupt:
        print("leanrecon: stopped; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    start()
