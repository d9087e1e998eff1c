"""The layout of weights that Triton's GEMM unpacks in few instructions.

K is padded with zeros to whole chunks of 128. A chunk of a row is eight words of 64 bits; word w
holds four values of each of the chunk's quarters q, k = 32q + 4w + {0, 1, 2, 3}:

    low half    pairs (k, k+1) of q = 0, 1, 2 in the bits of TURNS[0:3], and half of q = 3
    high half   pairs (k+2, k+3) likewise, in the bits of TURNS[3:6], and the other half of q = 3

A pair is an FP4 number in each 16-bit lane of 32 bits. Turned right by its TURN and masked with
0x81C081C0 it is two bf16 numbers, 2^-126 of the values: sign in bit 15, magnitude in bits 8 to 6.
The masks of three turns leave four bits of each lane free; the two halves leave different ones, so
that selecting by SPARE between them gives a 32-bit word in which q = 3 stands in two more turns.

    codes  [K/128, N, 64]         bytes of those words
    scales [K/128, N, 128/block]  byte 4r + q is of the block that holds quarter q of words 4r to
                                  4r + 3; blocks of 32 have r = 0 alone, for all words

A scale byte is one multiply away from the factor that decodes: E8M0 as it is, E4M3 with its
exponent widened, so that subnormal scales are normal ones (see `widened`). Where some scale cannot
be had in that way (`is_direct`), all stand in their own bytes, and `scales` has a first dimension
of 1 more: the kernels see it without reading the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fp4kernels.formats import BlockFormat
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.scales import ScaleFormat

CHUNK = 128
QUARTERS = 4
WORDS = CHUNK // 16
TURNS = ((0, 4, 10), (2, 6, 12), (8, 14))  # of the low half, the high half, and what is selected
SPARE = 0x60306030  # bits that the low half gives to the selected word; the high half the others
PLACES = (6, 7, 8, 15)  # of a number's bits, least first, in a lane that is turned


def to_interleaved(packed: Packed, fmt: BlockFormat) -> Packed:
    """Canonical codes [N, K/2] and scales [N, K/block], a byte each, rearranged as drawn above."""
    n, half_k = packed.codes.shape
    padding = -half_k % (CHUNK // 2)
    codes = unpack_nibbles(torch.nn.functional.pad(packed.codes, (0, padding)))
    # [N, chunk, q, w, half, lane] → [chunk, N, w, half, q, lane]
    numbers = codes.view(n, -1, QUARTERS, WORDS, 2, 2).permute(1, 0, 3, 4, 2, 5).long()
    words = _spread(numbers).contiguous()
    direct = is_direct(packed, fmt)
    scales = packed.scales
    if direct and fmt.scale is ScaleFormat.E4M3:
        scales = widened(scales)
    scales = torch.nn.functional.pad(scales, (0, 2 * padding // fmt.block_size))
    grouped = scales.view(n, -1, QUARTERS, CHUNK // QUARTERS // fmt.block_size)
    grouped = grouped.permute(1, 0, 3, 2).flatten(2).contiguous()
    return Packed(words, grouped if direct else grouped.unsqueeze(0), packed.tensor_scale)


def from_interleaved(packed: Packed, k: int, fmt: BlockFormat) -> Packed:
    """The way back, without the padding."""
    chunks, n, _ = packed.codes.shape
    numbers = _gather(packed.codes.view(chunks, n, WORDS, 8))
    codes = numbers.permute(1, 0, 4, 2, 3, 5).reshape(n, -1).to(torch.uint8)
    direct = packed.scales.dim() == 3
    grouped = packed.scales.view(chunks, n, -1, QUARTERS).permute(1, 0, 3, 2)
    scales = grouped.reshape(n, -1)[:, : k // fmt.block_size].contiguous()
    if direct and fmt.scale is ScaleFormat.E4M3:
        scales = narrowed(scales)
    return Packed(pack_nibbles(codes[:, :k]).contiguous(), scales, packed.tensor_scale)


def is_direct(packed: Packed, fmt: BlockFormat) -> bool:
    """Whether one multiply decodes: the scale times 2^126 (E8M0) or 2^119 (E4M3) is a bf16 number.

    That is scales up to 2, or positive ones; a scale of zero would become a tiny number, which is
    as good where it multiplies zeros only. Asks the device.
    """
    scales = packed.scales
    if fmt.scale is ScaleFormat.E8M0:
        return bool((scales <= 128).all())
    magnitudes = (packed.codes & 0x77).view(*scales.shape, fmt.block_size // 2)
    useless = (scales == 0) & magnitudes.any(-1)
    return bool((scales < 0x7F).all()) and not bool(useless.any())


def widened(scales: Tensor) -> Tensor:
    """E4M3 bytes 0 to 0x7E → bytes of 5 bits of exponent, 3 of mantissa: 2^(e - 10) (1 + m/8).

    Zero becomes byte 0, which no other scale is.
    """
    return torch.tensor(_WIDENED, dtype=torch.uint8, device=scales.device)[scales.long()]


def narrowed(scales: Tensor) -> Tensor:
    """The way back from `widened`."""
    inverse = torch.zeros(256, dtype=torch.uint8, device=scales.device)
    inverse[torch.tensor(_WIDENED, device=scales.device).long()] = torch.arange(
        len(_WIDENED), dtype=torch.uint8, device=scales.device
    )
    return inverse[scales.long()]


def _widen(byte: int) -> int:
    exponent, mantissa = byte >> 3, byte & 7
    if exponent:
        return (exponent + 3) << 3 | mantissa
    if not mantissa:
        return 0
    shift = 4 - mantissa.bit_length()  # to a leading 1 in bit 3
    return (4 - shift) << 3 | (mantissa << shift) & 7


_WIDENED = [_widen(byte) for byte in range(0x7F)]


def _homes() -> list[list[list[tuple[int, int]]]]:
    """Of the 32-bit pair (half, q): for each of the 8 bits of its two numbers, (half, bit)."""
    spare = [bit for bit in range(32) if SPARE >> bit & 1]
    found = []
    for half in range(2):
        row = []
        for quarter in range(QUARTERS):
            turn = TURNS[2][half] if quarter == 3 else TURNS[half][quarter]
            bits = [(16 * lane + place + turn) % 32 for lane in range(2) for place in PLACES]
            if quarter == 3:
                row.append([(0 if bit in spare else 1, bit) for bit in bits])
            else:
                row.append([(half, bit) for bit in bits])
        found.append(row)
    return found


_HOMES = _homes()


def _spread(numbers: Tensor) -> Tensor:
    """Codes [..., w, half, q, lane] as int64 → bytes [..., w * 8]."""
    shape = numbers.shape[:-3]
    words = numbers.new_zeros(*shape, 2)
    for half in range(2):
        for quarter in range(QUARTERS):
            for place, (home, bit) in enumerate(_HOMES[half][quarter]):
                value = numbers[..., half, quarter, place // 4] >> place % 4 & 1
                words[..., home] |= value << bit
    octets = torch.arange(0, 32, 8, device=numbers.device)
    return (words.unsqueeze(-1) >> octets & 0xFF).to(torch.uint8).flatten(-3)


def _gather(octets: Tensor) -> Tensor:
    """The way back: bytes [..., w, 8] → codes [..., w, half, q, lane] as int64."""
    shifts = torch.arange(0, 32, 8, device=octets.device)
    words = (octets.long().view(*octets.shape[:-1], 2, 4) << shifts).sum(-1)
    numbers = words.new_zeros(*words.shape[:-1], 2, QUARTERS, 2)
    for half in range(2):
        for quarter in range(QUARTERS):
            for place, (home, bit) in enumerate(_HOMES[half][quarter]):
                value = words[..., home] >> bit & 1
                numbers[..., half, quarter, place // 4] |= value << place % 4
    return numbers
