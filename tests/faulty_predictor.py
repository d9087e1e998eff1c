"""A compiling process that fails for 8 warps; its code is the same for all else."""

from __future__ import annotations

import json

from fp4bench.child import serve

CODE = {
    "name": "gemm_kernel", "registers": 90, "spills": 0, "stack_bytes": 0, "shared_bytes": 24832,
    "mma_kinds": ["mma.sync"], "instructions": {"integer": 613, "float": 68, "mma": 16, "move": 127},
}  # fmt: skip


def answer(question: bytes) -> bytes:
    warps = json.loads(question)["config"]["warps"]
    return json.dumps("ptxas fatal: no registers" if warps == 8 else [CODE]).encode()


if __name__ == "__main__":
    serve(lambda hello: answer)
