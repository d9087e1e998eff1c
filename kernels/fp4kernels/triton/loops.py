"""The main loop of a GEMM in SASS, and what one pass through it is made of."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fp4kernels.triton.instructions import class_of, mix

UNCOUNTED = ("mma", "global", "shared", "barrier")  # the work itself, and waiting; not stores
LANES = 32
_LABEL = re.compile(r"^(\.L_x_\d+):")
_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_SHAPE = re.compile(r"\.m(\d+)n(\d+)k(\d+)")
_WARPS = {"wgmma": 4}  # warps that share one instruction


@dataclass(frozen=True)
class Loop:
    """One pass of one warp through a loop."""

    instructions: Counter[str]  # class → how many
    counted: int  # those for anything but MMA, loads and barriers

    def weights_per_lane(self, kind: str, block_m: int) -> int:
        """Weights that a pass multiplies, a lane's share: unrolled or not, the MMAs tell.

        `kind` is the PTX name of its matrix instruction, whose other operand has `block_m` rows.
        """
        shape = _SHAPE.search(kind)
        assert shape is not None, kind
        products = math.prod(map(int, shape.groups())) * self.instructions["mma"]
        return products // (block_m * LANES * _WARPS.get(kind.partition(".")[0], 1))


def main_loop(sass: str) -> Loop | None:
    """The innermost loop with the most matrix instructions, or None where no loop has any.

    A loop is what stands between a label and a branch back to it.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    bodies: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := _LINE.match(line):
            opcodes.append(found[1].partition(".")[0])
            target = _TARGET.search(found[2])
            if opcodes[-1] == "BRA" and target is not None and target[1] in labels:
                bodies.append((labels[target[1]], len(opcodes)))
    loops = [body for body in bodies if _mmas(opcodes, body)]
    innermost = [a for a in loops if not any(_inside(b, a) for b in loops)]
    if not innermost:
        return None
    first, last = max(innermost, key=lambda body: _mmas(opcodes, body))
    counted = [
        opcode
        for opcode in opcodes[first:last]
        if class_of(opcode) not in UNCOUNTED or opcode.startswith("ST")
    ]
    return Loop(mix(Counter(opcodes[first:last])), len(counted))


def _mmas(opcodes: Sequence[str], body: tuple[int, int]) -> int:
    return sum(class_of(opcode) == "mma" for opcode in opcodes[body[0] : body[1]])


def _inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]
