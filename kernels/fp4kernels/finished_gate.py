"""The gate of a GEMM with an epilogue: against float64, with the gate's own allowance carried on.

The sums may be wrong by e, what `gate` allows before the output is rounded. With u = 2^-24, of
float32, each step makes of a value x with its e:

    bias, residual   e + u (|x| + e), one sum
    GELU, SiLU       L e + EVALUATED u (|x| + e), with L the largest slope of all three
    SwiGLU           of gate g and up p: L e_g (|p| + e_p) + |silu(g)| e_p, and what evaluating costs
    rounding         e + u_out (|x| + e)
    quantizing       a block's scale is one that the rule makes of some amax that e allows, and
                     under that scale a code is that of some value that e allows: both are monotone

EVALUATED: in x / (1 + exp(-z)), z has up to 6 roundings and exp 8 |z| u for its argument and 4 u for
itself, the sum 1 and the quotient 4: of |x| that is at most 8 * 0.28 + 1 + 5, since z times the slope
of the logistic function is below 0.28. With erf, cancellation included, it is less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels import guard
from fp4kernels.epilogues import (
    Activation,
    Added,
    Epilogue,
    FinishedLauncher,
    finished,
    quantized,
)
from fp4kernels.gate import OUTPUT_UNIT, Case, Outcome
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed, unpack_nibbles
from fp4kernels.recipes import Recipe
from fp4kernels.scaling import ScaleRule

UNIT = 2.0**-24
SLOPE = 1.13  # 1.129 of both GELUs, 1.0999 of SiLU
EVALUATED = 10
FILLS = (0x55, 0xAA)


@dataclass(frozen=True, eq=False)
class Carried:
    """What a finished output should be, and by how much it may be wrong; float64 [rows, columns]."""

    values: Tensor
    allowed: Tensor


def carry(case: Case, unit: float, epilogue: Epilogue, added: Added) -> Carried:
    """Of the case's compared rows; `unit` is the variant's accumulator unit."""
    rows = case.rows
    here = added._replace(residual=None if added.residual is None else added.residual[rows])
    without = here._replace(residual=None)
    error = 4 * (1 + math.log2(case.shape[2])) * unit * case.magnitude
    x = finished(case.expected, Epilogue(), without)
    if here.bias is not None:
        error = error + UNIT * (x.abs() + error)
    values = finished(case.expected, epilogue, without)
    if epilogue.activation is Activation.SWIGLU:
        gate, up = x[:, 0::2], x[:, 1::2]
        gate_error, up_error = error[:, 0::2], error[:, 1::2]
        most_up = up.abs() + up_error
        error = SLOPE * gate_error * most_up + torch.nn.functional.silu(gate).abs() * up_error
        error = error + (EVALUATED + 2) * UNIT * (gate.abs() + gate_error) * most_up
    elif epilogue.activation is not Activation.NONE:
        error = SLOPE * error + EVALUATED * UNIT * (x.abs() + error)
    if here.residual is not None:
        values = values + here.residual.double()
        error = error + UNIT * (values.abs() + error)
    return Carried(values, error)


def draw(case: Case, epilogue: Epilogue, seed: int) -> Added:
    """A bias and a residual of bfloat16 in the size of the sums, and an amax that clips some."""
    m, n, _ = case.shape
    generator = torch.Generator().manual_seed(seed)
    device, size = case.expected.device, float(case.expected.abs().median())

    def normal(*shape: int) -> Tensor:
        return (size * torch.randn(shape, generator=generator)).to(device, torch.bfloat16)

    added = Added(normal(n), normal(m, epilogue.columns(n)))
    how = epilogue.next_recipe
    if how is None or not how.format.tensor_scale:
        return added
    # of the compared rows, without the residual
    most = finished(case.expected, epilogue, added._replace(residual=None)).abs().max()
    return added._replace(amax=(0.75 * most).float())


def check(
    launch: FinishedLauncher,
    layout: Layout,
    unit: float,
    case: Case,
    epilogue: Epilogue,
    dtype: torch.dtype = torch.bfloat16,
) -> Outcome:
    """Run `launch` on `case` and what `draw` adds, into guarded outputs of two fills."""
    m, n, _ = case.shape
    added = draw(case, epilogue, 5)
    epilogue.check(m, n, added)
    wanted, how = carry(case, unit, epilogue, added), epilogue.next_recipe
    shape, device, outcome = (m, epilogue.columns(n)), case.w.codes.device, Outcome(0.0, None)
    for fill in FILLS:
        if how is None:
            parts = [guard.canaried(shape, dtype, device)]
        else:
            across = shape[1] // how.format.block_size
            sizes = ((m, shape[1] // 2), (m, across))
            parts = [guard.canaried(size, torch.uint8, device) for size in sizes]
        for part in parts:
            part.out.view(torch.uint8).fill_(fill)
        out: Tensor | Packed = parts[0].out
        if how is not None:
            scale = torch.full((), math.nan, device=device)
            out = Packed(parts[0].out, parts[1].out, scale)
        with guard.poisoned_scratch():
            launch(case.x, case.weight(layout), added, out)
        if not all(part.intact for part in parts):
            return Outcome(math.inf, "wrote outside its output")
        if isinstance(out, Packed):
            assert how is not None
            why = _misquantized(out, wanted, how, added, case.rows)
            outcome = Outcome(math.inf if why else 0.0, why)
        else:
            outcome = _compared(out[case.rows], wanted, dtype)
        if outcome.why is not None:
            return outcome
    return outcome


def _compared(out: Tensor, wanted: Carried, dtype: torch.dtype) -> Outcome:
    bound = wanted.allowed + OUTPUT_UNIT[dtype] * (wanted.values.abs() + wanted.allowed)
    error = (out.double() - wanted.values).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        return Outcome(math.inf, (
            f"{int(wrong.sum())} of {wrong.numel()} elements outside the gate; first at [{row}, "
            f"{column}]: got {float(out[row, column]):.6g}, expected "
            f"{float(wanted.values[row, column]):.6g} within {float(bound[row, column]):.3g}"
        ))  # fmt: skip
    return Outcome(float((error / bound).nan_to_num(0.0).max()), None)


def _misquantized(
    out: Packed, wanted: Carried, how: Recipe, added: Added, rows: Tensor
) -> str | None:
    """Why scales or codes are not those of any values that are allowed, or None."""
    block, values = how.format.block_size, wanted.values
    blocks = values.reshape(len(values), -1, block)
    error = wanted.allowed.reshape_as(blocks)
    least, most = (
        _scales_of(amax, how, added)
        for amax in (
            _down((blocks.abs() - error).amax(-1).clamp(min=0)),
            _up((blocks.abs() + error).amax(-1)),
        )
    )
    scales = out.scales[rows]
    wrong = (scales < least.scales) | (scales > most.scales)
    if wrong.any():
        row, at = wrong.nonzero()[0].tolist()
        return (
            f"{int(wrong.sum())} scales are wrong; first at [{row}, {at}]: got {scales[row, at]}, "
            f"expected {least.scales[row, at]} to {most.scales[row, at]}"
        )
    if not torch.equal(out.tensor_scale, most.tensor_scale):
        return f"the tensor scale is {out.tensor_scale}, but expected {most.tensor_scale}"
    element, held = how.format.element, how.format.scale.decode(scales).double()
    times = _times(held, how, added)
    error = error + 4 * UNIT * (blocks.abs() + error)  # roundings of the multiplier and by it
    low, high = (
        element.decode(element.encode(bound))
        for bound in (
            _down((blocks - error) * times[..., None]),
            _up((blocks + error) * times[..., None]),
        )
    )
    codes = element.decode(unpack_nibbles(out.codes[rows])).reshape_as(low)
    wrong = ((codes < low) | (codes > high)) & (held != 0)[..., None]
    if wrong.any():
        row, at, place = wrong.nonzero()[0].tolist()
        return (
            f"{int(wrong.sum())} codes are wrong; first at [{row}, {at * block + place}]: got "
            f"{codes[row, at, place]}, expected {low[row, at, place]} to {high[row, at, place]}"
        )
    return None


def _scales_of(amax: Tensor, how: Recipe, added: Added) -> Packed:
    """float32 [rows, blocks] → what a row of blocks with these largest values has."""
    values = torch.zeros(*amax.shape, how.format.block_size, device=amax.device)
    values[..., 0] = amax
    return quantized(values.flatten(1), how, added.amax)


def _times(scales: Tensor, how: Recipe, added: Added) -> Tensor:
    """What values are multiplied by under float64 `scales`, before they are coded."""
    if added.amax is not None:
        encode = 6 * 448 / added.amax.double()
        return encode / scales.clamp(min=2.0**-9)
    return (0.75 if how.scale_rule is ScaleRule.FLOOR_3_4 else 1.0) / scales


def _down(x: Tensor) -> Tensor:
    """The float32 numbers next below float64 ones."""
    return torch.nextafter(x.float(), torch.tensor(-math.inf, device=x.device))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x.float(), torch.tensor(math.inf, device=x.device))
