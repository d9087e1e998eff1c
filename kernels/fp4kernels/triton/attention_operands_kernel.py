# mypy: ignore-errors
"""Q, K and V of prefill: smoothed, rotated and quantized, bit for bit as fp4kernels.attention.operands
but for the sign of a NaN, and the order of sums in `bias_kernel`. Importing this needs triton.

A table has a row for each tile of places: its first token, how many it has, and their sequence.
"""

import triton
import triton.language as tl

from fp4kernels.triton.quantize_kernel import block_amax, encoded, raise_amax
from fp4kernels.triton.quantize_loads import _float32, pieces
from fp4kernels.triton.rotation import rotated
from fp4kernels.triton.within import largest, summed


@triton.jit
def _column_sums(x, step, left, count: tl.constexpr):
    """float32: of the first `left` of `count` values below each pointer `x`, `step` apart, as a tree."""
    if count == 1:
        return _float32(tl.load(x, mask=left > 0, other=0.0))
    else:
        half: tl.constexpr = count // 2
        one = _column_sums(x, step, left, half)
        return one + _column_sums(x + step * half, step, left - half, half)


@triton.jit
def tile_sums_kernel(
    x, sums, table, heads, tiles,
    d: tl.constexpr, dims: tl.constexpr, tile: tl.constexpr, mean: tl.constexpr,
):  # fmt: skip
    """Of the tokens of one tile of x [T, heads, d], or their mean: sums [heads, tiles, dims]."""
    number, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token, count = tl.load(table + number * 3), tl.load(table + number * 3 + 1)
    column = tl.arange(0, dims)
    first = x + (token.to(tl.int64) * heads + head) * d + column
    total = _column_sums(first, heads * d, tl.where(column < d, count, 0), tile)
    if mean:
        total = tl.div_rn(total, count.to(tl.float32))
    tl.store(sums + (head.to(tl.int64) * tiles + number) * dims + column, total)


@triton.jit
def sequence_means_kernel(
    sums, means, spans, heads, sequences, tiles, dims: tl.constexpr, tile: tl.constexpr
):
    """Of each sequence, from the sums of its tiles: means [heads, sequences, dims]."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    spans += sequence * 5
    first, count, tokens = tl.load(spans), tl.load(spans + 1), tl.load(spans + 2)
    column = tl.arange(0, dims)
    sums += (head.to(tl.int64) * tiles + first) * dims + column
    total = tl.zeros((dims,), tl.float32)
    for start in range(0, count, tile):
        left = count - start + column * 0
        total += _column_sums(sums + start * dims, dims, left, tile)
    total = tl.div_rn(total, tl.maximum(tokens, 1).to(tl.float32))
    tl.store(means + (head * sequences + sequence) * dims + column, total)


@triton.jit
def rows_kernel(
    x, mean, k_mean, shift, amax, codes, scales, tensor_scale, table, heads, tiles, sequences,
    scale, d: tl.constexpr, dims: tl.constexpr, tile: tl.constexpr, group: tl.constexpr,
    by_tile: tl.constexpr, block: tl.constexpr, rule: tl.constexpr, rounding: tl.constexpr,
    size: tl.constexpr, minus: tl.constexpr, lanes: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """Some rows of a tile of x [T, heads, d], less a mean by tile or by sequence, in blocks along d.

    Without codes it raises the int32 `amax`. `shift` gets each row times `k_mean`, that of the kv
    head of `group` heads, times `scale`.
    """
    across: tl.constexpr = dims // step
    rows: tl.constexpr = lanes // across
    parts: tl.constexpr = tile // rows
    head, part = tl.program_id(0) % heads, tl.program_id(0) // heads
    number, first = part // parts, part % parts * rows
    token, count = tl.load(table + number * 3), tl.load(table + number * 3 + 1)
    sequence = tl.load(table + number * 3 + 2)
    lane = tl.arange(0, lanes)
    row, column = first + lane // across, lane % across * step
    inside = ((row < count) & (column < d))[:, None]
    at = ((token + row).to(tl.int64) * heads + head) * d + column
    values = pieces(x, at[:, None], inside, lanes, step)
    if shift is not None:
        near = k_mean + ((head // group) * sequences + sequence) * dims
        products = values * pieces(near, column[:, None], inside, lanes, step)
        of_groups = summed(products.reshape((lanes, 1, step)), step).reshape((rows, 1, across))
        total = summed(of_groups, across).reshape((rows,)) * scale
        place = (head.to(tl.int64) * tiles + number) * tile + first + tl.arange(0, rows)
        tl.store(shift + place, total)
    if mean is not None:
        if by_tile:
            mean += (head.to(tl.int64) * tiles + number) * dims
        else:
            mean += (head * sequences + sequence) * dims
        values = values - pieces(mean, column[:, None], inside, lanes, step)
    if size:  # whose zeros may be negative
        values = tl.where(inside, rotated(values, lanes, step, size, minus), 0.0)
    if codes is None:
        raise_amax(amax, largest(values.reshape((lanes, 1, step)), step), lanes)
    else:
        blocks = values.reshape((lanes, step // block, block))
        index = ((head.to(tl.int64) * tiles + number) * tile + row) * across + lane % across
        encoded(
            blocks, block_amax(blocks, 1.0), index, lane >= 0, amax, codes, scales, tensor_scale,
            None, None, across, rule, rounding, 1.0, False,
        )  # fmt: skip


@triton.jit
def _columns(x, step, left, lanes: tl.constexpr, values: tl.constexpr):
    """float32 [lanes, values] below each pointer `x` [lanes, 1], `step` apart, of which `left` are."""
    if values == 1:
        return _float32(tl.load(x, mask=left > 0, other=0.0))
    else:
        half: tl.constexpr = values // 2
        low = _columns(x, step, left, lanes, half)
        high = _columns(x + step * half, step, left - half, lanes, half)
        return tl.join(low, high).permute((0, 2, 1)).reshape((lanes, values))


@triton.jit
def columns_kernel(
    x, amax, codes, scales, tensor_scale, table, heads, tiles,
    d: tl.constexpr, dims: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
    rule: tl.constexpr, rounding: tl.constexpr, wide: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """`wide` columns of a tile of x [T, heads, d], in blocks along the tokens: codes of x transposed.

    Without codes it raises the int32 `amax`. Neighbouring threads have neighbouring columns.
    """
    parts: tl.constexpr = dims // wide
    lanes: tl.constexpr = wide * (tile // step)
    head, part = tl.program_id(0) % heads, tl.program_id(0) // heads
    number = part // parts
    token, count = tl.load(table + number * 3), tl.load(table + number * 3 + 1)
    lane = tl.arange(0, lanes)
    column, first = part % parts * wide + lane % wide, lane // wide * step
    start = x + ((token + first).to(tl.int64) * heads + head) * d + column
    left = tl.where(column < d, count - first, 0)
    values = _columns(start[:, None], heads * d, left[:, None], lanes, step)
    if codes is None:
        raise_amax(amax, largest(values.reshape((lanes, 1, step)), step), lanes)
    else:
        blocks = values.reshape((lanes, step // block, block))
        index = (head.to(tl.int64) * dims + column) * (tiles * (tile // step))
        index += (number * tile + first) // step
        encoded(
            blocks, block_amax(blocks, 1.0), index, lane >= 0, amax, codes, scales, tensor_scale,
            None, None, 1, rule, rounding, 1.0, False,
        )  # fmt: skip


@triton.jit
def bias_kernel(
    means, k, k_mean, bias, table, spans, heads, kv_heads, q_tiles, sequences, longest_k, chunks,
    d: tl.constexpr, dims: tl.constexpr, tile: tl.constexpr,
    rows: tl.constexpr, keys: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """`rows` means of Q, of its tiles, times `keys` keys of the same sequence, less their mean."""
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    chunk, place = rest % chunks * rows, rest // chunks * keys
    table += place // tile * 3
    token, count, sequence = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    spans += sequence * 5
    k_first, q_first, q_count = tl.load(spans), tl.load(spans + 3), tl.load(spans + 4)
    if chunk >= q_count:
        return
    kv_head = head // (heads // kv_heads)
    query, key = chunk + tl.arange(0, rows), place % tile + tl.arange(0, keys)
    number = head.to(tl.int64) * q_tiles + q_first + query
    means += number[:, None] * dims
    k += ((token + key).to(tl.int64) * kv_heads + kv_head)[:, None] * d
    total = tl.zeros((rows, keys), tl.float32)
    for start in range(0, dims, depth):
        column = (start + tl.arange(0, depth))[None, :]
        left = tl.load(means + column, mask=(query < q_count)[:, None], other=0.0)
        inside = (key < count)[:, None] & (column < d)
        right = _float32(tl.load(k + column, mask=inside, other=0.0))
        if k_mean is not None:
            mean = tl.load(k_mean + (kv_head * sequences + sequence) * dims + column)
            right = tl.where(inside, right - mean, 0.0)
        total = tl.dot(left, right.T, total, input_precision="ieee")
    column = place - k_first * tile + tl.arange(0, keys)
    at = number[:, None] * longest_k + column[None, :]
    tl.store(bias + at, total, mask=(query < q_count)[:, None])
