"""Evaluate a few lines of inline PTX with numpy: what a GPU would do with the very same text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def run(text: str, outputs: int, inputs: Sequence[Words]) -> list[Words]:
    """The outputs $0, $1, … of inline assembly whose inputs are the operands after them."""
    registers = {f"${outputs + i}": value.astype(np.uint64) for i, value in enumerate(inputs)}
    for line in text.strip().removeprefix("{").removesuffix("}").split(";"):
        if line.strip() and not line.strip().startswith(".reg"):
            opcode, _, operands = line.strip().partition(" ")
            _step(opcode, re.findall(r"\{[^}]*\}|[^,\s]+", operands), registers)
    return [registers[f"${i}"] for i in range(outputs)]


def _step(opcode: str, operands: list[str], registers: dict[str, Words]) -> None:
    target, *sources = operands
    if opcode.startswith("mov") and target.startswith("{"):
        names, width = _names(target), 32 if opcode == "mov.b64" else 16
        for i, name in enumerate(names):
            registers[name] = _value(sources[0], registers) >> _u(width * i) & _u((1 << width) - 1)
        return
    if opcode.startswith("mov") and sources[0].startswith("{"):
        low, high = (registers[name] for name in _names(sources[0]))
        registers[target] = low | high << _u(16)
        return
    values = [_value(source, registers) for source in sources]
    registers[target] = _OPERATIONS[opcode](*values) & _u(0xFFFFFFFF)


def _names(group: str) -> list[str]:
    return [name.strip() for name in group.strip("{}").split(",")]


def _value(name: str, registers: dict[str, Words]) -> Words:
    return registers[name] if name in registers else np.asarray(int(name, 0), dtype=np.uint64)


def _u(number: int) -> np.uint64:
    return np.uint64(number)


def _turn(a: Words, b: Words, by: Words) -> Words:
    return (b << _u(32) | a) >> by


def _lop3(a: Words, b: Words, c: Words, table: Words) -> Words:
    found = np.zeros_like(a)
    for row in range(8):
        if int(table) >> row & 1:
            parts = (x if row >> i & 1 else ~x for x, i in ((a, 2), (b, 1), (c, 0)))
            term = next(parts)
            for part in parts:
                term = term & part
            found = found | term
    return found


def _prmt(a: Words, b: Words, selector: Words) -> Words:
    both, found = b << _u(32) | a, np.zeros_like(a)
    for i in range(4):
        which = int(selector) >> 4 * i & 0xF
        assert which < 8, "no sign is replicated"
        found = found | (both >> _u(8 * which) & _u(0xFF)) << _u(8 * i)
    return found


def bf16(bits: Words) -> NDArray[np.float64]:
    """The numbers with these 16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _fma_bf16x2(a: Words, b: Words, c: Words) -> Words:
    """Per lane; AssertionError unless the result is a bf16 number without rounding."""
    found = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), dtype=np.uint64)
    for lane in (_u(0), _u(16)):
        x, y, z = (bf16(np.atleast_1d(v >> lane & _u(0xFFFF))) for v in (a, b, c))
        exact = x * y + z
        with np.errstate(over="ignore"):
            bits = exact.astype(np.float32).view(np.uint32).astype(np.uint64)
        assert not (bits & _u(0xFFFF)).any(), "a product is rounded"
        assert np.array_equal(bf16(bits >> _u(16)), exact), "a product overflows"
        found |= (bits >> _u(16)) << lane
    return found


_OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shf.r.wrap.b32": _turn,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "fma.rn.bf16x2": _fma_bf16x2,
}
