"""The attention problems of a model: its heads, at the contexts and batches that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from fp4bench.workloads import Model, Problem, WeightSource, unique
from fp4kernels.attention.workload import AttentionWorkload, Phase

PAGE_SIZE = 64  # of a cache, unless another is asked for


def attention_problems(
    model: Model,
    contexts: Sequence[int],
    batches: Sequence[int],
    phases: Sequence[Phase],
    page_size: int = PAGE_SIZE,
) -> list[Problem]:
    """Decoding of one new token a sequence over so many, and prefill of whole sequences.

    Raises FormatError for a head dim that no kernel has, WorkloadError for sizes.
    """
    return unique(
        Problem(
            AttentionWorkload(
                phase, batch, context if phase is Phase.PREFILL else 1, context,
                model.num_attention_heads, model.kv_heads, model.head,
                page_size=page_size if phase is Phase.DECODE else 0,
            ),
            WeightSource(),
            (f"{phase} attention",),
        )
        for phase in phases
        for context in contexts
        for batch in batches
    )  # fmt: skip
