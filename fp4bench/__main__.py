"""The entry point: Ctrl-C is clean even while torch is being imported."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from fp4bench.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
