# mypy: ignore-errors
"""FP4 prefill in FlashAttention's form, as fp4kernels.attention.simulate; importing this needs triton.

`native` multiplies codes under scales by the device's block-scaled instruction, for both products;
else codes become bf16 first, which is exact, so that both differ in the order of sums alone. P is
rounded to E2M1 in either. Scores are in powers of two; the softmax is float32.
"""

import triton
import triton.language as tl

from fp4kernels.triton.attention_decode_kernel import LOG2_E, _operand
from fp4kernels.triton.block_scales import E4M3_MAX, _e4m3, e4m3_value, power_of_two
from fp4kernels.triton.codes import nearest, value_of
from fp4kernels.triton.decode_kernel import _to_bfloat16, decode
from fp4kernels.triton.dot_scaled_kernel import _as_e4m3


@triton.jit
def _scaled_dot(
    left, left_scales, right, right_scales, acc, block: tl.constexpr, interpreted: tl.constexpr
):
    """acc plus left [R, K] times right [C, K] transposed, both codes under scales; what not every
    interpreter has is multiplied decoded."""
    if interpreted:
        a = decode(left, left_scales, block == 16, interpreted)
        b = decode(right, right_scales, block == 16, interpreted)
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    else:
        acc = tl.dot_scaled(left, left_scales, "e2m1", right.T, right_scales, "e2m1", acc)
    return acc


@triton.jit
def _quantized(p, rows: tl.constexpr, keys: tl.constexpr, block: tl.constexpr,
               round_scale: tl.constexpr):  # fmt: skip
    """P [rows, keys], at least 0 → scale bytes int32 [rows, blocks], what those mean, and P over
    them [rows, blocks, block]."""
    blocks = p.reshape((rows, keys // block, block))
    amax = tl.max(blocks, 2)
    if block == 16:
        wanted = tl.minimum(amax * (1 / 6), E4M3_MAX)
        byte = _e4m3(wanted)
        scale = e4m3_value(byte)
        divisor = scale if round_scale else wanted
        inverse = 1.0 / tl.where(divisor == 0.0, 1.0, divisor)
    else:
        byte, inverse = power_of_two(amax.to(tl.int32, bitcast=True), "rceil")
        scale = tl.maximum(byte << 23, 0x400000).to(tl.float32, bitcast=True)
    return byte, scale, blocks * inverse[:, :, None]


@triton.jit
def _packed(scaled, rows: tl.constexpr, keys: tl.constexpr, converts: tl.constexpr):
    """Numbers from 0 to 6 → bytes of two codes [rows, keys / 2]."""
    low, high = tl.split(scaled.reshape((rows, keys // 2, 2)))
    if converts:
        codes = tl.inline_asm_elementwise(
            CONVERT, "=r,r,r,r,r,r,r,r,r", [low, high], dtype=tl.uint8, is_pure=True, pack=4
        )
    else:
        codes = ((nearest(low) & 7) | ((nearest(high) & 7) << 4)).to(tl.uint8)
    return codes


@triton.jit
def _weighted(
    p, v, v_scales, acc,
    rows: tl.constexpr, keys: tl.constexpr, block: tl.constexpr, round_scale: tl.constexpr,
    native: tl.constexpr, converts: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """acc plus the quantized P times V, given as codes [dims, keys / 2] and scales of its transpose."""
    byte, scale, scaled = _quantized(p, rows, keys, block, round_scale)
    if native:
        codes = _packed(scaled, rows, keys, converts)
        scales = byte.to(tl.uint8)
        if block == 16 and not interpreted:
            scales = scales.to(tl.float8e4nv, bitcast=True)
        acc = _scaled_dot(codes, scales, v, v_scales, acc, block, interpreted)
    else:
        values = (value_of(nearest(scaled)) * scale[:, :, None]).reshape((rows, keys))
        right = decode(v, v_scales, block == 16, interpreted)
        acc = tl.dot(_operand(values, interpreted), right.T, acc, input_precision="ieee")
    return acc


@triton.jit
def _over_keys(
    q, q_scales, k, k_scales, v, v_scales, bias, factor, bias_factor, places, last_key, tk, window,
    first, last, top, total, acc,
    masked: tl.constexpr, causal: tl.constexpr, windowed: tl.constexpr, biased: tl.constexpr,
    block: tl.constexpr, exponent: tl.constexpr, round_scale: tl.constexpr, reverse: tl.constexpr,
    rows: tl.constexpr, keys: tl.constexpr, dims: tl.constexpr,
    native: tl.constexpr, converts: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Tiles `first` to `last` of keys; `places` are the keys at the queries' own places."""
    within = tl.arange(0, keys)
    for step in range(first, last):
        tile = first + last - 1 - step if reverse else step
        start = tile * keys
        key_rows = (start + within).to(tl.int64)[:, None]
        right = tl.load(k + key_rows * (dims // 2) + tl.arange(0, dims // 2)[None, :])
        of = tl.load(k_scales + key_rows * (dims // block) + tl.arange(0, dims // block)[None, :])
        scores = tl.zeros((rows, keys), tl.float32)
        if native:
            scores = _scaled_dot(q, q_scales, right, of, scores, block, interpreted)
        else:
            right = decode(right, of, block == 16, interpreted)
            scores = tl.dot(q, right.T, scores, input_precision="ieee")
        scores = scores * factor
        if biased:
            scores += (tl.load(bias + start + within) * bias_factor)[None, :]
        if masked:
            at = (start + within)[None, :]
            seen = at < last_key
            if causal:
                seen = seen & (at <= places[:, None])
            if windowed:
                seen = seen & (at > places[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # of rows that have seen nothing
        keep = tl.exp2(top - finite)
        p = tl.exp2(scores - (finite - exponent)[:, None])
        total = total * keep + tl.sum(p, 1)
        top = higher
        column = tl.arange(0, dims).to(tl.int64)[:, None]
        left = tl.load(v + column * (tk // 2) + (start // 2 + tl.arange(0, keys // 2))[None, :])
        of = tl.load(
            v_scales
            + column * (tk // block)
            + (start // block + tl.arange(0, keys // block))[None, :]
        )
        acc = _weighted(
            p, left, of, acc * keep[:, None],
            rows, keys, block, round_scale, native, converts, interpreted,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def prefill_kernel(
    q, q_scales, q_scale, k, k_scales, k_scale, v, v_scales, v_scale, bias, shift, table, out, lse,
    heads, tokens, tq, tk, longest_k, window, scale,
    d: tl.constexpr, dims: tl.constexpr, group: tl.constexpr, block: tl.constexpr,
    causal: tl.constexpr, windowed: tl.constexpr, exponent: tl.constexpr,
    round_scale: tl.constexpr, reverse: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, tile: tl.constexpr,
    native: tl.constexpr, converts: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """`block_m` queries of one head of one sequence: O [tokens, heads, d] and LSE [heads, tokens]."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    table += sequence * 5
    queries, keys, q_start = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    q_place, k_place = tl.load(table + 3), tl.load(table + 4)
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * block_m  # those with most keys first
    if first_row >= queries:
        return
    rows = first_row + tl.arange(0, block_m)
    held = (head.to(tl.int64) * tq + q_place + rows)[:, None]
    kv_head = (head // group).to(tl.int64)
    k += (kv_head * tk + k_place) * (dims // 2)
    k_scales += (kv_head * tk + k_place) * (dims // block)
    v += kv_head * dims * (tk // 2) + k_place // 2
    v_scales += kv_head * dims * (tk // block) + k_place // block
    if native and block == 16 and not interpreted:
        q_scales, k_scales, v_scales = _as_e4m3(q_scales), _as_e4m3(k_scales), _as_e4m3(v_scales)
    left = tl.load(q + held * (dims // 2) + tl.arange(0, dims // 2)[None, :])
    of_q = tl.load(q_scales + held * (dims // block) + tl.arange(0, dims // block)[None, :])
    if not native:
        left = decode(left, of_q, block == 16, interpreted)
    biased: tl.constexpr = bias is not None
    if biased:
        bias += (head.to(tl.int64) * (tq // tile) + (q_place + first_row) // tile) * longest_k
    factor = scale * LOG2_E * tl.load(q_scale) * tl.load(k_scale)

    places = rows + keys - queries
    clear, last = keys // block_n, tl.cdiv(keys, block_n)
    first = 0
    if causal:
        clear = tl.minimum(clear, (first_row + keys - queries + 1) // block_n)
        last = tl.minimum(last, tl.cdiv(first_row + block_m + keys - queries, block_n))
    if windowed:
        first = tl.maximum(first_row + keys - queries - window + 1, 0) // block_n
        clear = first
    top = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    acc = tl.zeros((block_m, dims), tl.float32)
    # tiles that all queries see, and those with a mask, in the order of the keys or against it
    if not windowed or reverse:
        top, total, acc = _over_keys(
            left, of_q, k, k_scales, v, v_scales, bias, factor, scale * LOG2_E, places, keys,
            tk, window, clear if reverse else first, last if reverse else clear, top, total, acc,
            reverse, causal, windowed, biased, block, exponent, round_scale, reverse,
            block_m, block_n, dims, native, converts, interpreted,
        )  # fmt: skip
    if not windowed or not reverse:
        top, total, acc = _over_keys(
            left, of_q, k, k_scales, v, v_scales, bias, factor, scale * LOG2_E, places, keys,
            tk, window, first if reverse else clear, clear if reverse else last, top, total, acc,
            not reverse, causal, windowed, biased, block, exponent, round_scale, reverse,
            block_m, block_n, dims, native, converts, interpreted,
        )  # fmt: skip

    none = total == 0.0
    total = tl.where(none, 1.0, total)
    acc = acc / total[:, None] * tl.load(v_scale)
    result = (top + tl.log2(total) - exponent) / LOG2_E
    real = rows < queries
    if shift is not None:
        result += tl.load(shift + head.to(tl.int64) * tq + q_place + rows)
    tl.store(
        lse + head.to(tl.int64) * tokens + q_start + rows,
        tl.where(none, float("-inf"), result), mask=real,
    )  # fmt: skip
    columns = tl.arange(0, dims)
    inside = real[:, None] & (columns < d)[None, :]
    at = ((q_start + rows).to(tl.int64) * heads + head)[:, None] * d + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out + at, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out + at, acc, mask=inside)


# four low values in $1..$4 and four high ones in $5..$8; the second source is the low code
CONVERT = tl.constexpr("""{
.reg .b8 byte<4>;
cvt.rn.satfinite.e2m1x2.f32 byte0, $5, $1;
cvt.rn.satfinite.e2m1x2.f32 byte1, $6, $2;
cvt.rn.satfinite.e2m1x2.f32 byte2, $7, $3;
cvt.rn.satfinite.e2m1x2.f32 byte3, $8, $4;
mov.b32 $0, {byte0, byte1, byte2, byte3};
}""")
