# mypy: ignore-errors
"""GEMM over weights in fp4kernels.interleaved, unpacked to bf16 in registers; needs triton.

A 64-bit word becomes 16 values in 24 instructions, as inline PTX: turns and masks (16), and one
packed multiply by scale and bias for each pair (8). Every value is the exact bf16 number that
decode_kernel's docstring describes, but for a factor of 2^-7 under E4M3 scales, which keeps scale
times bias within bf16 and is taken back from the sums. Where scales are not `direct`, and under
the interpreter, which has no inline PTX, the same integer steps are plain operations; scales that
are not direct are multiplied after the bias.

The four quarters of a chunk are four operands of K = 32 each, since each comes out of a word in
its own registers and no value moves between threads.
"""

import triton
import triton.language as tl

from fp4kernels.interleaved import CHUNK as _CHUNK
from fp4kernels.interleaved import SPARE as _SPARE
from fp4kernels.interleaved import TURNS as _TURNS
from fp4kernels.interleaved import WORDS as _WORDS
from fp4kernels.triton.decode_kernel import (
    E2M1_BIAS,
    _from_bits,
    _load,
    _tile,
    _to_bfloat16,
    decode,
    decode_scales,
)

CHUNK, WORDS = tl.constexpr(_CHUNK), tl.constexpr(_WORDS)
QUARTER = tl.constexpr(_CHUNK // 4)
E4M3_FACTOR = tl.constexpr(2.0**7)  # what direct E4M3 scales leave to the sums
NUMBERS = tl.constexpr(0x81C081C0)
SPARE = tl.constexpr(_SPARE)


def _place(turn: int, word: str, name: str) -> str:
    """PTX: the two numbers of `word` that `turn` brings into place."""
    mask = f"{NUMBERS.value:#x}"
    if not turn:
        return f"and.b32 {name}, {word}, {mask};"
    return f"shf.r.wrap.b32 t, {word}, {word}, {turn}; and.b32 {name}, t, {mask};"


def _unpack() -> str:
    """PTX: outputs 0 to 7 are pairs (half, quarter) times their scales; 8 is the word, 9 and 10
    the scales of quarters 0, 1 and 2, 3. All inputs are read before the first output is written."""
    low, high, selected = _TURNS
    turns = [*((t, "a") for t in low), (selected[0], "c"), *((t, "b") for t in high)]
    turns.append((selected[1], "c"))
    lines = [
        ".reg .b32 a, b, c, t, z, v<8>, s<4>; .reg .b16 h<4>;",
        "mov.b64 {a, b}, $8; mov.b32 {h0, h1}, $9; mov.b32 {h2, h3}, $10;",
        "mov.b32 z, 0x80008000;",  # -0, which changes no product: sm_80 has fma only
        *(f"mov.b32 s{q}, {{h{q}, h{q}}};" for q in range(4)),
        f"lop3.b32 c, a, b, {_SPARE:#x}, 0xe4;",  # the mask's bits of a, the others of b
        *(_place(turn, word, f"v{i}") for i, (turn, word) in enumerate(turns)),
        *(f"fma.rn.bf16x2 ${i}, v{i}, s{i % 4}, z;" for i in range(8)),
    ]
    return "{" + "\n".join(lines) + "}"


def _factors(shift: int, least: int) -> str:
    """PTX: the scale bytes of a word → their factors as two pairs of bf16 numbers: `shift` brings a
    byte's exponent to the exponent of bf16, and `least` is added to it."""
    added = least << 7 | least << 23
    lines = [".reg .b32 s, t, u;", "mov.b32 s, $2;"]
    lines += [
        f"prmt.b32 {name}, s, 0, {lanes:#x}; mad.lo.u32 {name}, {name}, {1 << shift}, {added:#x};"
        for name, lanes in (("t", 0x4140), ("u", 0x4342))
    ]
    return "{" + "\n".join([*lines, "mov.b32 $0, t; mov.b32 $1, u;"]) + "}"


# of direct scales: byte b is 2^(b - 127), taken times 2^126; e.mmm is 2^(e - 10) (1 + m/8), taken
# times 2^119. What is added is the factor of exponent 0, in bf16's bias of 127
_E8M0, _E4M3 = (7, 126), (4, 236)
E8M0_SHIFT, E8M0_LEAST = (tl.constexpr(value) for value in _E8M0)
E4M3_SHIFT, E4M3_LEAST = (tl.constexpr(value) for value in _E4M3)
E8M0_FACTORS, E4M3_FACTORS = tl.constexpr(_factors(*_E8M0)), tl.constexpr(_factors(*_E4M3))
UNPACK = tl.constexpr(_unpack())
LOW, HIGH, SELECTED = (tl.constexpr(turns) for turns in _TURNS)


@triton.jit
def _turned(word, turn: tl.constexpr):
    """Plain twin of `_place`: uint32 → the two numbers that `turn` brings into place."""
    if turn != 0:
        word = (word >> turn) | (word << (32 - turn))
    return word & NUMBERS


@triton.jit
def unpack(codes):
    """Words [R, W] as int64 → eight pairs of numbers [R, W] as uint32, times 2^-126."""
    low = codes.to(tl.uint32)
    high = (codes >> 32).to(tl.uint32)
    selected = (low & SPARE) | (high & (SPARE ^ 0xFFFFFFFF))
    return (
        _turned(low, LOW[0]), _turned(low, LOW[1]), _turned(low, LOW[2]),
        _turned(selected, SELECTED[0]),
        _turned(high, HIGH[0]), _turned(high, HIGH[1]), _turned(high, HIGH[2]),
        _turned(selected, SELECTED[1]),
    )  # fmt: skip


@triton.jit
def _over_words(scales):
    """[R, S] → [R, W]: each of a row's scales for its share of the words."""
    rows: tl.constexpr = scales.shape[0]
    shares: tl.constexpr = scales.shape[1]
    spread = tl.broadcast_to(scales[:, :, None], (rows, shares, WORDS // shares))
    return spread.reshape((rows, WORDS))


@triton.jit
def unpack_scaled(codes, scales, nvfp4: tl.constexpr):
    """As `unpack`, times direct scales [R, S], four bytes in an int32: pairs of bf16 values."""
    factors: tl.constexpr = E4M3_FACTORS if nvfp4 else E8M0_FACTORS
    first, second = tl.inline_asm_elementwise(
        factors, "=r,=r,r", [scales], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
    )
    return tl.inline_asm_elementwise(
        UNPACK, "=r,=r,=r,=r,=r,=r,=r,=r,l,r,r",
        [codes, _over_words(first), _over_words(second)],
        dtype=(tl.uint32,) * 8, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _quarter(low, high, interpreted: tl.constexpr):
    """The pairs (k, k+1) and (k+2, k+3) of each word, uint32 [R, W] → bf16 [R, 4W]."""
    pairs = tl.join(low, high)
    left = _from_bits((pairs & 0xFFFF).to(tl.uint16), interpreted)
    right = _from_bits((pairs >> 16).to(tl.uint16), interpreted)
    return tl.join(left, right).reshape((low.shape[0], QUARTER))


@triton.jit
def _scaled(
    values, scales, quarter: tl.constexpr,
    nvfp4: tl.constexpr, direct: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """A quarter of unpacked values [R, 32] times bias and scales [R, S], without inline PTX."""
    rows: tl.constexpr = values.shape[0]
    shares: tl.constexpr = scales.shape[1]
    byte = (scales.to(tl.uint32, bitcast=True) >> (8 * quarter)) & 0xFF
    values = values.reshape((rows, shares, QUARTER // shares))
    if direct:
        shift: tl.constexpr = E4M3_SHIFT if nvfp4 else E8M0_SHIFT
        least: tl.constexpr = E4M3_LEAST if nvfp4 else E8M0_LEAST
        bits = ((byte << shift) + (least << 7)).to(tl.uint16)
        values *= _from_bits(bits, interpreted)[:, :, None]
    else:
        values *= E2M1_BIAS
        values *= decode_scales(byte, nvfp4, interpreted)[:, :, None]
    return values.reshape((rows, QUARTER))


@triton.jit
def weights(codes, scales, nvfp4: tl.constexpr, direct: tl.constexpr, interpreted: tl.constexpr):
    """Words [R, 8] and scales [R, S] of a chunk → its quarters, bf16 [R, 32] each."""
    if direct and not interpreted:
        a, b, c, d, e, f, g, h = unpack_scaled(codes, scales, nvfp4)
    else:
        a, b, c, d, e, f, g, h = unpack(codes)
    first, second = _quarter(a, e, interpreted), _quarter(b, f, interpreted)
    third, fourth = _quarter(c, g, interpreted), _quarter(d, h, interpreted)
    if interpreted or not direct:
        first = _scaled(first, scales, 0, nvfp4, direct, interpreted)
        second = _scaled(second, scales, 1, nvfp4, direct, interpreted)
        third = _scaled(third, scales, 2, nvfp4, direct, interpreted)
        fourth = _scaled(fourth, scales, 3, nvfp4, direct, interpreted)
    return first, second, third, fourth


@triton.jit
def _activations(pointers, columns, k, even_k: tl.constexpr, interpreted: tl.constexpr):
    """A bf16 tile whose columns from `k` on are zero."""
    x = _load(pointers, columns, k, even_k)
    return _from_bits(x.to(tl.uint16, bitcast=True), interpreted) if interpreted else x


@triton.jit
def _multiply(w, x, acc, weights_first: tl.constexpr):
    if weights_first:
        acc = tl.dot(w, x.T, acc, input_precision="ieee")
    else:
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    return acc


@triton.jit
def interleaved_sums(
    x, w, w_scales, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, direct: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr, weights_first: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Sums of one tile over one share of K, without tensor scales, and the tile's row and column.

    x [M, K] is bf16; w is int64 [K/128, N, 8] and w_scales int32 [K/128, N, 32/block]. With
    `weights_first` the matrix instruction has the weights on its M side.
    """
    shares: tl.constexpr = QUARTER // block
    chunks: tl.constexpr = block_k // CHUNK
    tile_m, tile_n = _tile(tl.program_id(0), m, n, block_m, block_n, group_m)
    share = tl.program_id(1)
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    w_rows = (columns % n)[:, None]  # rows past the edge read others and are never stored
    tiles_k = tl.cdiv(k, block_k)
    first, last = share * tiles_k // split_k, (share + 1) * tiles_k // split_k

    x += (rows % m)[:, None] * k + first * block_k
    w += (first * chunks * n + w_rows) * WORDS + tl.arange(0, WORDS)[None, :]
    w_scales += (first * chunks * n + w_rows) * shares + tl.arange(0, shares)[None, :]
    part = tl.arange(0, QUARTER)
    whole = tl.arange(0, CHUNK)

    acc = tl.zeros((block_n, block_m) if weights_first else (block_m, block_n), tl.float32)
    for tile_k in range(first, last):
        for chunk in tl.static_range(chunks):
            at = tile_k * block_k + chunk * CHUNK
            if even_k or chunk == 0:
                codes = tl.load(w + chunk * n * WORDS)
                scales = tl.load(w_scales + chunk * n * shares)
            else:  # a tile's later chunks may not be there
                there = tl.full((block_n, 1), at, tl.int32) < k
                codes = tl.load(w + chunk * n * WORDS, mask=there, other=0)
                scales = tl.load(w_scales + chunk * n * shares, mask=there, other=0)
            w0, w1, w2, w3 = weights(codes, scales, nvfp4, direct, interpreted)
            if weights_first:
                here = x + chunk * CHUNK + part[None, :]
                x0 = _activations(here, at + part, k, even_k, interpreted)
                acc = _multiply(w0, x0, acc, weights_first)
                x1 = _activations(here + QUARTER, at + QUARTER + part, k, even_k, interpreted)
                acc = _multiply(w1, x1, acc, weights_first)
                x2 = _activations(
                    here + 2 * QUARTER, at + 2 * QUARTER + part, k, even_k, interpreted
                )
                acc = _multiply(w2, x2, acc, weights_first)
                x3 = _activations(
                    here + 3 * QUARTER, at + 3 * QUARTER + part, k, even_k, interpreted
                )
                acc = _multiply(w3, x3, acc, weights_first)
            else:
                here = x + chunk * CHUNK + whole[None, :]
                x0 = _activations(here, at + whole, k, even_k, interpreted)
                quarters = tl.join(tl.join(w0, w2), tl.join(w1, w3)).permute(0, 2, 3, 1)
                acc = _multiply(quarters.reshape((block_n, CHUNK)), x0, acc, weights_first)
        x += block_k
        w += chunks * n * WORDS
        w_scales += chunks * n * shares

    if nvfp4 and direct:
        acc *= E4M3_FACTOR
    if weights_first:
        acc = acc.T
    return acc, tile_m, tile_n


@triton.jit
def interleaved_kernel(
    x, w, w_scales, x_tensor_scale, w_tensor_scale, out, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, direct: tl.constexpr, weight_only: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr, weights_first: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """One tile of out [M, N], or of one share of K in a float32 workspace [split_k, M, N]."""
    acc, tile_m, tile_n = interleaved_sums(
        x, w, w_scales, m, n, k, block, nvfp4, direct, block_m, block_n, block_k,
        group_m, split_k, weights_first, even_k, interpreted,
    )  # fmt: skip
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if split_k == 1:
        if not weight_only:
            acc *= tl.load(x_tensor_scale)
        acc *= tl.load(w_tensor_scale)
    else:
        out += tl.program_id(1).to(tl.int64) * m * n
    out += rows[:, None] * n + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out, acc, mask=inside)


@triton.jit
def expand_kernel(
    codes, scales, out, blocks,
    block: tl.constexpr, nvfp4: tl.constexpr, tile: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Blocks of codes [blocks, block/2] and their scales [blocks] → bf16 [blocks, block], exact."""
    index = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    inside = index < blocks
    packed = tl.load(codes + index * (block // 2) + tl.arange(0, block // 2)[None, :], mask=inside)
    values = decode(packed, tl.load(scales + index, mask=inside), nvfp4, interpreted)
    if interpreted:
        values = _to_bfloat16(values, interpreted)
    tl.store(out + index * block + tl.arange(0, block)[None, :], values, mask=inside)
