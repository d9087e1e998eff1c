"""A compiling process that aborts for sm_80, fails for sm_89 and spills elsewhere."""

from __future__ import annotations

import json
import os
import sys

from fp4bench.child import serve

SPILLING = {
    "name": "gemm_kernel", "registers": 255, "spills": 7, "stack_bytes": 32, "shared_bytes": 1024,
    "mma_kinds": [], "instructions": {"local": 7, "integer": 100},
}  # fmt: skip


def answer(question: bytes) -> bytes:
    arch = json.loads(question)["arch"]
    if arch == "sm_80":
        print("Assertion `rank == 2' failed", file=sys.stderr, flush=True)
        os.abort()
    return json.dumps("ptxas fatal: no registers" if arch == "sm_89" else [SPILLING]).encode()


if __name__ == "__main__":
    serve(lambda hello: answer)
