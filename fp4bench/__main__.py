"""The entry point: Ctrl-C is clean even while torch is being imported.

Imports make hundreds of thousands of objects that live as long as the process. Looking through them
for garbage, while they are made and at exit, would take a third of a short command's time.
"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    gc.disable()
    try:
        from fp4bench.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
