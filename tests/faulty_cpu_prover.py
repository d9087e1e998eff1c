"""A process that would prove configurations: it gives its own number, and dies of what has no panels."""

from __future__ import annotations

import json
import os
import sys

from fp4bench.child import serve


def answer(question: bytes) -> bytes:
    case, _ = json.loads(question)
    if case["config"]["panels"] == 0:
        print("free(): invalid pointer", file=sys.stderr, flush=True)
        os.abort()
    return json.dumps([os.getpid(), None]).encode()


if __name__ == "__main__":
    serve(lambda hello: answer)
