"""Which kernel runs a product, and its launcher: from a plan's text, or the untuned choice."""

from __future__ import annotations

import functools

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.errors import LayoutError
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import FALLBACK, ROWS, untuned, variant, variants_for
from fp4kernels.tables import parse_plan
from fp4kernels.variants import Candidate, Launcher
from fp4kernels.workloads import GemmWorkload

Here = tuple[Device, Toolchain]
DEFAULT_PLAN = ""  # the untuned candidate for the weight's layout, chosen by M


def candidate_for(
    plan: str,
    workload: GemmWorkload,
    recipe: Recipe,
    layout: Layout,
    here: Here,
    batch_invariant: bool,
) -> Candidate:
    """Of the plan or, where it is DEFAULT_PLAN, of all kernels that read `layout`.

    Raises LayoutError or, for a plan, TableError where none can.
    """
    if plan != DEFAULT_PLAN:
        tuned = parse_plan(plan)
        choose = tuned.choose_steady if batch_invariant else tuned.choose
        return choose(workload.m)
    workload.check(recipe)
    fallback = ROWS if batch_invariant else FALLBACK
    able = [
        v
        for v in variants_for(recipe, *here, batch_invariant=batch_invariant)
        if v.layout is layout and v not in (FALLBACK, ROWS)
    ]
    if not able and layout is not fallback.layout:
        raise LayoutError(f"no kernel on {here[0].name} reads a {recipe.name} weight as {layout}")
    return untuned(able or [fallback], workload, recipe, here[0], batch_invariant=batch_invariant)


@functools.lru_cache(maxsize=4096)
def built(candidate: Candidate, here: Here) -> Launcher:
    recipe = recipe_named(candidate.recipe)
    return variant(candidate.variant).build(candidate.config, recipe, *here)


@functools.lru_cache(maxsize=4096)
def built_finished(candidate: Candidate, epilogue: Epilogue, here: Here) -> FinishedLauncher:
    recipe = recipe_named(candidate.recipe)
    return variant(candidate.variant).build_finished(epilogue, candidate.config, recipe, *here)
