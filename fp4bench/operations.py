"""What depends on the operation: which kernels compete, which is untuned, what they are proven on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fp4bench.attention.baselines import ATTENTION_BASELINES
from fp4bench.attention.operands import AttentionOperands
from fp4bench.baselines import BASELINES
from fp4bench.subjects import GemmSubject, Subject
from fp4bench.trials import END_TO_END, SDPA, reference_of
from fp4bench.workloads import Problem
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.registry import attention_variants_for, default_attention
from fp4kernels.attention.workload import AttentionWorkload, Workload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import any_variant, default_candidate, variants_for
from fp4kernels.variants import Candidate, Variant

Here = tuple[Device, Toolchain]


def kernels_for(workload: Workload, recipe: str, here: Here) -> Sequence[Variant[Any, Any, Any]]:
    """Those that compete. FormatError where none runs the recipe here."""
    if isinstance(workload, AttentionWorkload):
        return attention_variants_for(workload.phase, attention_recipe(recipe), *here)
    return variants_for(recipe_named(recipe), *here)


def default_for(workload: Workload, recipe: str, here: Here) -> Candidate:
    """What a user gets without a table."""
    if isinstance(workload, AttentionWorkload):
        return default_attention(workload, attention_recipe(recipe), *here)
    return default_candidate(workload, recipe_named(recipe), *here)


def illegal(candidate: Candidate, workload: Workload, here: Here) -> str | None:
    """Why the candidate cannot or should not run the workload, or None."""
    kernel = any_variant(candidate.variant)
    recipe = kernel.recipe(candidate.recipe)
    return kernel.illegal(candidate.config, recipe, workload, *here)


def build(candidate: Candidate, here: Here) -> Any:
    """Its launcher. BuildError where the compiler fails."""
    kernel = any_variant(candidate.variant)
    return kernel.build(candidate.config, kernel.recipe(candidate.recipe), *here)


def subject_of(problem: Problem, here: Here, seed: int) -> Subject:
    """What the problem's candidates are measured and proven on."""
    if isinstance(problem.workload, AttentionWorkload):
        return AttentionOperands(problem, here, seed)
    return GemmSubject(problem, here[0], seed)


def baselines_of(workload: Workload) -> tuple[str, ...]:
    """All that may race beside the workload's candidates."""
    attention = isinstance(workload, AttentionWorkload)
    return (*ATTENTION_BASELINES,) if attention else (*BASELINES,)


def has_end_to_end(workload: Workload) -> bool:
    """Whether candidates are timed with quantizing what is new, too."""
    return isinstance(workload, AttentionWorkload)


def beside_final(workload: Workload, here: Here) -> tuple[str, ...]:
    """What a tune's finals race beside: torch's own way in bf16, and of attention the tuned
    candidate end to end and the project's kernel over a cache in bf16, where there is one."""
    reference = reference_of(workload)
    if not isinstance(workload, AttentionWorkload):
        return (reference,)
    others = [
        name
        for name, baseline in ATTENTION_BASELINES.items()
        if name.startswith("bf16") and baseline.absent(workload, *here) is None
    ]
    assert reference == SDPA
    return (reference, *others, END_TO_END)
