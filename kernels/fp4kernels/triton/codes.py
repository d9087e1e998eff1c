# mypy: ignore-errors
"""E2M1 codes of scaled values, eight to a word; importing this needs triton.

The code of a magnitude m, were all numbers allowed, is c(m) = min(2m, m+2, m/2+4): each line is the
steps of one binade, and as c is monotone, rounding may come before the minimum. Beside 2^23 float32
has the integers alone, so that a sum with it rounds each line once, to nearest even, and leaves the
code in its lowest bits.
"""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import INF, MAGNITUDE

ONES = tl.constexpr(2.0**23)  # where float32 has steps of one
MOST = tl.constexpr(0x4B000007)  # bits of 2^23, and the largest code
REST = tl.constexpr(0x05000000)  # 2^32 less the bits of 2^23 twice, the second time shifted by four
SIX = tl.constexpr(0x40C00000)  # bits of E2M1's largest value


@triton.jit
def codes_of(y, rounding: tl.constexpr, seed, first, rows: tl.constexpr, values: tl.constexpr):
    """float32 [rows, values] → words [rows, values / 8] of eight codes, the first one lowest.

    By chance ("stochastic") it takes the `seed` and the index `first` [rows, 1] of each row's first
    value, a multiple of 4; "hardware" is to nearest even by the instruction that sm_100 brought.
    """
    if rounding == "hardware":
        v0, v1, v2, v3, v4, v5, v6, v7 = _of_words(y, rows, values)
        return tl.inline_asm_elementwise(
            CONVERT, "=r,r,r,r,r,r,r,r,r", [v0, v1, v2, v3, v4, v5, v6, v7],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    elif rounding == "stochastic":
        return _packed(y, by_chance(y, _draws(seed, first, rows, values)), rows, values)
    else:
        return _packed(y, nearest(y), rows, values)


@triton.jit
def nearest(y):
    """float32 → the bits of 2^23 + the code of the magnitude; 7 for what is larger, or NaN."""
    m = tl.abs(y)
    low = tl.fma(m, 2.0, ONES).to(tl.int32, bitcast=True)
    middle = (m + (ONES + 2.0)).to(tl.int32, bitcast=True)
    high = tl.fma(m, 0.5, ONES + 4.0).to(tl.int32, bitcast=True)
    return tl.minimum(tl.minimum(tl.minimum(low, middle), high), MOST)


@triton.jit
def by_chance(y, draws):
    """As `nearest`, but up to the next code if a draw from [0, 1) is below the share of the way.

    In steps of its binade a magnitude is q: an integer n to nearest, and an exact rest of at most
    one half, which is negative where n lies above q.
    """
    m = tl.minimum(y.to(tl.int32, bitcast=True) & MAGNITUDE, SIX)
    binade = tl.maximum(m & INF, 127 << 23)
    q = m.to(tl.float32, bitcast=True) * ((255 << 23) - binade).to(tl.float32, bitcast=True)
    n = q + ONES
    rest = q - (n - ONES)
    up, down = (draws < rest).to(tl.int32), (draws - 1.0 >= rest).to(tl.int32)
    return n.to(tl.int32, bitcast=True) + (binade >> 22) - 254 + up - down


@triton.jit
def value_of(code):
    """What `nearest` gave → the magnitude: E2M1's code is the top of float32's, but for the bias."""
    return ((code & 7) << 22).to(tl.float32, bitcast=True) * (2.0**126)


@triton.jit
def _draws(seed, first, rows: tl.constexpr, values: tl.constexpr):
    """As fp4kernels.philox: 24 bits for each value from `first` on."""
    quad = (first // 4).to(tl.int64) + tl.arange(0, values // 4)[None, :]
    a, b, c, d = tl.randint4x(seed, quad)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape((rows, values))
    return (words.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * (2.0**-24)


@triton.jit
def _packed(y, codes, rows: tl.constexpr, values: tl.constexpr):
    """Signs of `y`, and 2^23 + codes."""
    s0, s1, s2, s3, s4, s5, s6, s7 = _of_words(y.to(tl.int32, bitcast=True), rows, values)
    c0, c1, c2, c3, c4, c5, c6, c7 = _of_words(codes, rows, values)
    word = _below(s7 * 0, s7, c7)
    word = _below(word, s6, c6)
    word = _below(word, s5, c5)
    word = _below(word, s4, c4)
    word = _below(word, s3, c3)
    word = _below(word, s2, c2)
    word = _below(word, s1, c1)
    return _below(word, s0, c0) + REST


@triton.jit
def _below(word, sign, code):
    """Sign and code, below what `word` holds. Of all 2^23 but the last two nothing is left."""
    word = (word << 1) | ((sign >> 31) & 1)
    return (word << 3) + code


@triton.jit
def _of_words(x, rows: tl.constexpr, values: tl.constexpr):
    """[rows, values] → for each of the eight places in a word [rows, values / 8]."""
    even, odd = tl.split(x.reshape((rows, values // 8, 4, 2)))
    a, c = tl.split(even.reshape((rows, values // 8, 2, 2)))
    b, d = tl.split(odd.reshape((rows, values // 8, 2, 2)))
    x0, x4 = tl.split(a)
    x2, x6 = tl.split(c)
    x1, x5 = tl.split(b)
    x3, x7 = tl.split(d)
    return x0, x1, x2, x3, x4, x5, x6, x7


# the second source becomes the low code of a byte
CONVERT = tl.constexpr("""{
.reg .b8 byte<4>;
cvt.rn.satfinite.e2m1x2.f32 byte0, $2, $1;
cvt.rn.satfinite.e2m1x2.f32 byte1, $4, $3;
cvt.rn.satfinite.e2m1x2.f32 byte2, $6, $5;
cvt.rn.satfinite.e2m1x2.f32 byte3, $8, $7;
mov.b32 $0, {byte0, byte1, byte2, byte3};
}""")
