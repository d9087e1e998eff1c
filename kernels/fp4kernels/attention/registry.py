"""All attention kernels, and which of them run a recipe on a device."""

from __future__ import annotations

from collections.abc import Mapping

from fp4kernels.attention.plain import PlainDecode, PlainPrefill
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.variant import AttentionVariant
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.cpu.attention_decode import CppAttentionDecode
from fp4kernels.cpu.prefill_variant import CppAttentionPrefill
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.triton.flash_decode import FlashDecode
from fp4kernels.triton.flash_prefill import FlashPrefill
from fp4kernels.variants import Candidate

FALLBACKS: Mapping[Phase, AttentionVariant] = {
    kernel.phase: kernel for kernel in (PlainDecode(), PlainPrefill())
}
# of those that take a recipe on a device, the first of a phase is its default
ATTENTION_VARIANTS: Mapping[str, AttentionVariant] = {
    kernel.name: kernel
    for kernel in (
        CppAttentionDecode(),
        CppAttentionPrefill(),
        FlashDecode(),
        FlashPrefill(),
        *FALLBACKS.values(),
    )
}


def attention_variants_for(
    phase: Phase, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
) -> list[AttentionVariant]:
    """The kernels of a phase that take `recipe` here; a torch fallback only where there is no other.

    Raises FormatError where that does not take it, either.
    """
    fallback = FALLBACKS[phase]
    able = [
        kernel
        for kernel in ATTENTION_VARIANTS.values()
        if kernel.phase == phase
        and kernel is not fallback
        and kernel.takes(recipe, device, toolchain) is None
    ]
    why = fallback.takes(recipe, device, toolchain)
    if not able and why is not None:
        raise FormatError(f"no kernel runs {recipe.name} in {phase}: {fallback.name} {why}")
    return able or [fallback]


def default_attention(
    workload: AttentionWorkload, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
) -> Candidate:
    """What runs without a table."""
    chosen = attention_variants_for(workload.phase, recipe, device, toolchain)[0]
    config = chosen.default(workload, recipe, device)
    return Candidate(recipe.text, chosen.name, chosen.layout, config)
