# mypy: ignore-errors
"""Split-KV flash-decoding over a paged FP4 cache; importing this needs triton.

A program has the queries of one sequence that read one kv head, all heads of its group as rows of
one tile, and a share of the keys. Codes become bf16 in registers, exactly but for the tensor scales,
which multiply scores and sums; P is rounded to bf16. Scores and the log-sum-exp are in powers of
two until the end.
"""

import triton
import triton.language as tl

from fp4kernels.triton.attention_values import SMALL, halves
from fp4kernels.triton.decode_kernel import _from_bits, _to_bfloat16, decode_scales

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _operand(x, interpreted: tl.constexpr):
    """float32 → what a bf16 multiplier takes."""
    rounded = _to_bfloat16(x, interpreted)
    if interpreted:
        rounded = _from_bits(rounded.to(tl.uint16, bitcast=True), interpreted)
    return rounded


@triton.jit
def _eight_bits(codes, scales, interpreted: tl.constexpr):
    """MXINT8 codes [R, C] under E8M0 scales → values."""
    rows: tl.constexpr = codes.shape[0]
    columns: tl.constexpr = codes.shape[1]
    blocks: tl.constexpr = scales.shape[1]
    values = _operand(codes.to(tl.int8, bitcast=True).to(tl.float32) * (1 / 64), interpreted)
    values = values.reshape((rows, blocks, columns // blocks))
    return (values * decode_scales(scales, False, interpreted)[:, :, None]).reshape((rows, columns))


@triton.jit
def _rows(
    table, first, tokens, inside, head, kv_heads,
    page_size: tl.constexpr, tokens_first: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Which row of the cache's tensors holds the head of each of the tokens from `first` on, int64."""
    if page_size % block_n == 0:  # all on one page
        page = tl.load(table + first // page_size).to(tl.int64)
        start, place = first % page_size, tl.arange(0, block_n)
        if tokens_first:
            rows = ((page * page_size + start) * kv_heads + head) + place * kv_heads
        else:
            rows = ((page * kv_heads + head) * page_size + start) + place
    else:
        pages = tl.load(table + tokens // page_size, mask=inside, other=0).to(tl.int64)
        place = tokens % page_size
        if tokens_first:
            rows = (pages * page_size + place) * kv_heads + head
        else:
            rows = (pages * kv_heads + head) * page_size + place
    return rows


@triton.jit
def _bytes(
    codes, scales, rows, inside,
    row: tl.constexpr, width: tl.constexpr, scaled: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """Codes [tokens, width] and scales [tokens, blocks] of rows that hold `row` and `scaled`."""
    at, block = tl.arange(0, width), tl.arange(0, blocks)
    here, near = inside[:, None], inside[:, None]
    if row < width:
        here = here & (at < row)[None, :]
        near = near & (block < scaled)[None, :]
    held = tl.load(codes + rows[:, None] * row + at[None, :], mask=here, other=0)
    of = tl.load(scales + rows[:, None] * scaled + block[None, :], mask=near, other=0)
    return held, of


@triton.jit
def _query(q, at, columns, real, d: tl.constexpr, interpreted: tl.constexpr):
    """bf16 rows of q at some of its columns."""
    wanted = real[:, None] & (columns < d)[None, :]
    rows = tl.load(q + at[:, None] * d + columns[None, :], mask=wanted, other=0.0)
    if interpreted:
        rows = _from_bits(rows.to(tl.uint16, bitcast=True), interpreted)
    return rows


@triton.jit
def flash_decode_kernel(
    q, k_codes, k_scales, k_scale, v_codes, v_scales, v_scale, table, lengths,
    out, lse, queries, heads, kv_heads, pages, window, scale, splits,
    d: tl.constexpr, dims: tl.constexpr, group: tl.constexpr,
    k_block: tl.constexpr, v_block: tl.constexpr, k_eight_bit: tl.constexpr,
    page_size: tl.constexpr, tokens_first: tl.constexpr, windowed: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, split: tl.constexpr,
    ptx: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """q [S, queries, heads, d] bf16 → O of the same shape and LSE [S, heads, queries]; or, if `split`,
    float32 O of each share [splits, S, queries, heads, d] and its LSE in powers of two."""
    sequence, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    share = tl.program_id(2)
    rows = tl.program_id(1) * block_m + tl.arange(0, block_m)
    query = rows // group
    q_head = head * group + rows % group
    real = query < queries
    at = (sequence.to(tl.int64) * queries + query) * heads + q_head  # row of q and out
    half: tl.constexpr = dims // 2
    pairs = 2 * tl.arange(0, half)
    if k_eight_bit:
        left = _query(q, at, tl.arange(0, dims), real, d, interpreted)
    else:
        even = _query(q, at, pairs, real, d, interpreted)
        odd = _query(q, at, pairs + 1, real, d, interpreted)

    length = tl.load(lengths + sequence)
    own = length - queries + query  # the key at each query's own place
    first_row = tl.program_id(1) * block_m // group
    last_row = ((tl.program_id(1) + 1) * block_m - 1) // group
    last = tl.minimum(length - queries + last_row + 1, length)
    start = 0
    if windowed:
        start = tl.maximum(length - queries + first_row - window + 1, 0) // block_n
    tiles = tl.maximum(tl.cdiv(last, block_n) - start, 0)
    factor, share_of_v = scale * LOG2_E * tl.load(k_scale), tl.load(v_scale)
    if k_block == 16:
        factor = factor / SMALL
    if v_block == 16:
        share_of_v = share_of_v / SMALL
    table += sequence.to(tl.int64) * pages

    top = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    low = tl.zeros((block_m, half), tl.float32)  # even columns of the output
    high = tl.zeros((block_m, half), tl.float32)
    for tile in range(start + tiles * share // splits, start + tiles * (share + 1) // splits):
        tokens = tile * block_n + tl.arange(0, block_n)
        inside = tokens < length
        held = _rows(
            table, tile * block_n, tokens, inside, head, kv_heads, page_size, tokens_first, block_n
        )
        if k_eight_bit:
            codes, of = _bytes(
                k_codes, k_scales, held, inside, d, dims, d // k_block, dims // k_block
            )
            k = _eight_bits(codes, of, interpreted)
            scores = tl.dot(left, k.T, input_precision="ieee")
        else:
            codes, of = _bytes(
                k_codes, k_scales, held, inside, d // 2, half, d // k_block, dims // k_block
            )
            k_low, k_high = halves(codes, of, k_block == 16, ptx, interpreted)
            scores = tl.dot(even, k_low.T, input_precision="ieee")
            scores = tl.dot(odd, k_high.T, scores, input_precision="ieee")
        scores = scores * factor
        seen = tokens[None, :] <= own[:, None]
        if windowed:
            seen = seen & (tokens[None, :] > (own - window)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # of rows that have seen nothing
        keep = tl.exp2(top - finite)
        p = tl.exp2(scores - finite[:, None])
        total = total * keep + tl.sum(p, 1)
        top = higher
        codes, of = _bytes(
            v_codes, v_scales, held, inside, d // 2, half, d // v_block, dims // v_block
        )
        v_low, v_high = halves(codes, of, v_block == 16, ptx, interpreted)
        weights = _operand(p, interpreted)
        low = tl.dot(weights, v_low, low * keep[:, None], input_precision="ieee")
        high = tl.dot(weights, v_high, high * keep[:, None], input_precision="ieee")

    none = total == 0.0
    acc = tl.join(low, high).reshape((block_m, dims))
    acc = acc / tl.where(none, 1.0, total)[:, None] * share_of_v
    sum_exp = tl.where(none, float("-inf"), top + tl.log2(tl.where(none, 1.0, total)))
    lse_at = (sequence.to(tl.int64) * heads + q_head) * queries + query
    if split:
        sequences = tl.num_programs(0) // kv_heads
        before = share.to(tl.int64) * sequences * queries * heads  # rows of other shares
        at += before
        lse_at += before
    else:
        sum_exp = sum_exp / LOG2_E
    columns = tl.arange(0, dims)
    wanted = real[:, None] & (columns < d)[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(
            out + at[:, None] * d + columns[None, :], _to_bfloat16(acc, interpreted), mask=wanted
        )
    else:
        tl.store(out + at[:, None] * d + columns[None, :], acc, mask=wanted)
    tl.store(lse + lse_at, sum_exp, mask=real)


@triton.jit
def combine_kernel(
    partial, partial_lse, out, lse, queries, heads, splits,
    d: tl.constexpr, dims: tl.constexpr, most: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """The shares of one query's head, always summed in the same order."""
    row, size = tl.program_id(0), tl.num_programs(0)
    sequence, query, head = row // (queries * heads), row // heads % queries, row % heads
    lse_row = (sequence * heads + head) * queries + query
    share = tl.arange(0, most)
    columns = tl.arange(0, dims)
    here = share < splits
    at = share.to(tl.int64) * size
    exponents = tl.load(partial_lse + at + lse_row, mask=here, other=float("-inf"))
    top = tl.max(exponents, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(exponents - top)
    total = tl.sum(weights, 0)
    pointers = partial + (at + row)[:, None] * d + columns[None, :]
    inside = columns < d
    values = tl.load(pointers, mask=here[:, None] & inside[None, :], other=0.0)
    none = total == 0.0
    acc = tl.sum(values * weights[:, None], 0) / tl.where(none, 1.0, total)
    result = tl.where(none, float("-inf"), (top + tl.log2(tl.where(none, 1.0, total))) / LOG2_E)
    target = out + row.to(tl.int64) * d + columns
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(target, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(target, acc, mask=inside)
    tl.store(lse + lse_row, result)
