# mypy: ignore-errors
"""Quantizers of whole rows, where codes depend on what stands elsewhere in the row: its root mean
square, or its largest block. Importing this needs triton.

A program has a few rows. One that its threads can hold is read once; a longer one goes by in chunks,
again for each thing that must be known of it first.
"""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import INF, power_of_two
from fp4kernels.triton.quantize_kernel import block_amax, encoded, raise_amax
from fp4kernels.triton.quantize_loads import loaded, pieces
from fp4kernels.triton.within import largest, summed


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def quantize_rows_kernel(
    x, other, amax, raised, codes, scales, tensor_scale, seed_low, seed_high, total, across, stride,
    block: tl.constexpr, rule: tl.constexpr, rounding: tl.constexpr, headroom: tl.constexpr,
    window: tl.constexpr, swizzle: tl.constexpr, prologue: tl.constexpr, eps: tl.constexpr,
    size: tl.constexpr, minus: tl.constexpr, group: tl.constexpr, rows: tl.constexpr,
    slots: tl.constexpr, chunks: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """As quantize_kernel, of rows // slots of the `total` rows, each of `chunks` times `slots` groups
    or less. With a `window`, the int64 `raised`, if there is one, grows by how many scales it raises."""
    lane = tl.arange(0, rows)
    row = tl.program_id(0) * (rows // slots) + lane // slots
    in_row = across * block // group
    at = row.to(tl.int64) * stride
    factor = _row_factor(x, at, row < total, in_row, prologue, eps, rows, group, slots, chunks)
    least = tl.zeros((rows,), tl.int32)
    if window:
        for chunk in range(chunks):
            column = chunk * slots + lane % slots
            inside = (row < total) & (column < in_row)
            values = _values(
                x, at, other, column, factor, inside,
                rows, group, prologue, size, minus, interpreted,
            )  # fmt: skip
            bits = block_amax(values.reshape((rows, group // block, block)), 1.0)
            finite = tl.where(bits < INF, bits, 0)
            least = tl.maximum(least, tl.max(finite, axis=1))
        most = _over_row(tl.max(least.reshape((rows // slots, slots)), axis=1), rows, slots)
        least = (most.to(tl.float32, bitcast=True) * (2.0**-window)).to(tl.int32, bitcast=True)

    for chunk in range(chunks):
        column = chunk * slots + lane % slots
        inside = (row < total) & (column < in_row)
        values = _values(
            x, at, other, column, factor, inside,
            rows, group, prologue, size, minus, interpreted,
        )  # fmt: skip
        blocks = values.reshape((rows, group // block, block))
        bits = block_amax(blocks, headroom)
        given = tl.maximum(bits, least[:, None]) if window else bits
        byte = encoded(
            blocks, given, row * in_row + column, inside, amax, codes, scales, tensor_scale,
            seed_low, seed_high, across, rule, rounding, headroom, swizzle,
        )  # fmt: skip
        if raised is not None:
            wanted, _ = power_of_two(bits, rule)
            count = ((byte != wanted) & (bits > 0) & inside[:, None]).to(tl.int32)
            tl.atomic_add(raised, tl.sum(tl.sum(count, axis=1), axis=0).to(tl.int64))


@triton.jit
def amax_rows_kernel(
    x, other, amax, total, across, stride,
    block: tl.constexpr, prologue: tl.constexpr, eps: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, group: tl.constexpr, rows: tl.constexpr, slots: tl.constexpr,
    chunks: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """As amax_kernel, of the rows that a program of quantize_rows_kernel has."""
    lane = tl.arange(0, rows)
    row = tl.program_id(0) * (rows // slots) + lane // slots
    in_row = across * block // group
    at = row.to(tl.int64) * stride
    factor = _row_factor(x, at, row < total, in_row, prologue, eps, rows, group, slots, chunks)
    most = tl.zeros((rows, 1), tl.float32)
    for chunk in range(chunks):
        column = chunk * slots + lane % slots
        inside = (row < total) & (column < in_row)
        values = _values(
            x, at, other, column, factor, inside,
            rows, group, prologue, size, minus, interpreted,
        )  # fmt: skip
        found = largest(values.reshape((rows, 1, group)), group)
        most = tl.maximum(most, found, propagate_nan=tl.PropagateNan.ALL)
    raise_amax(amax, most, rows)


@triton.jit
def _row_factor(
    x, at, here, in_row, prologue: tl.constexpr, eps: tl.constexpr, rows: tl.constexpr,
    group: tl.constexpr, slots: tl.constexpr, chunks: tl.constexpr,
):  # fmt: skip
    """float32 [rows]: 1 over the root mean square of each one's row, where the prologue needs it.

    Squares are summed as a tree, but for chunks: the error grows with the logarithm of K.
    """
    if prologue != "rms":
        return 1.0
    else:
        lane = tl.arange(0, rows) % slots
        squares = tl.zeros((rows,), tl.float32)
        for chunk in range(chunks):
            column = chunk * slots + lane
            inside = (here & (column < in_row))[:, None]
            values = pieces(x, (at + column * group)[:, None], inside, rows, group)
            found = summed((values * values).reshape((rows, 1, group)), group)
            squares += found.reshape((rows,))
        total = tl.sum(squares.reshape((rows // slots, slots)), axis=1)
        mean = tl.div_rn(total, (in_row * group).to(tl.float32))
        return _over_row(tl.div_rn(1.0, tl.sqrt_rn(mean + eps)), rows, slots)


@triton.jit
def _over_row(found, rows: tl.constexpr, slots: tl.constexpr):
    """One for each row → as many, one for each of its slots."""
    return tl.broadcast_to(found[:, None], (rows // slots, slots)).reshape((rows,))


@triton.jit
def _values(
    x, at, other, column, factor, inside,
    rows: tl.constexpr, group: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Those of the groups `column` of rows whose values begin `at`."""
    x_at = (at + column * group)[:, None]
    other_at = x_at if prologue == "swiglu" else (column * group)[:, None]
    return loaded(
        x, x_at, other, other_at, factor, inside[:, None],
        rows, group, prologue, size, minus, interpreted,
    )  # fmt: skip
