"""Small inputs of attention's gate: of every kind and odd lengths, on shuffled pages."""

from __future__ import annotations

import itertools

import torch

from fp4kernels.attention.gate import Case, decode_case, prefill_case
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.pages import paged
from fp4kernels.attention.problem import Segments
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.synthetic import KINDS, inputs
from fp4kernels.attention.variant import Quantized
from fp4kernels.attention.workload import AttentionWorkload, Phase

LENGTHS = (203, 0, 17, 64, 1)  # of the sequences
MOST_QUERIES, MOST_KV_HEADS = 37, 2


def odd_cases(
    work: AttentionWorkload, recipe: AttentionRecipe, seed: int, device: torch.device
) -> list[Case]:
    """One of each kind, for kernels that are compiled for `work`; outputs are float32."""
    return [odd_case(kind, work, recipe, seed, device) for kind in KINDS]


def odd_case(
    kind: str, work: AttentionWorkload, recipe: AttentionRecipe, seed: int, device: torch.device
) -> Case:
    """Of one kind."""
    kv_heads, queries = min(work.kv_heads, MOST_KV_HEADS), min(work.queries, MOST_QUERIES)
    decoding = work.phase == Phase.DECODE
    # a decode has as many queries of each sequence; prefill has those that there are keys for
    lengths = [length for length in LENGTHS if length == 0 or length >= queries or not decoding]
    counts = [queries if decoding else min(queries, length) for length in lengths]
    drawn = inputs(
        kind, sum(counts), sum(lengths), kv_heads * work.group, kv_heads, work.head_dim, seed
    )
    q, k, v = (x.bfloat16().float().to(device) for x in drawn)
    if decoding:
        rows = q.view(len(lengths), queries, *q.shape[1:])
        on = paged(
            rows, k, v, lengths, recipe, work.page_size, window=work.window, scale=work.scale,
            shuffled=seed,
        )  # fmt: skip
        return decode_case(kind, recipe, on, torch.float32, range(len(lengths)))
    ends = (tuple(itertools.accumulate(each, initial=0)) for each in (counts, lengths))
    made = prepare(q, k, v, Segments(*ends), recipe, work.scale)
    whole = Quantized(made, work.mask, work.scale)
    return prefill_case(kind, recipe, whole, torch.float32, work.head_dim)
