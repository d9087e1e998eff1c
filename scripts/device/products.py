"""GEMMs as layers use them: fused epilogues beside unfused, one order for every M, expand_dense."""

from __future__ import annotations

import functools
import itertools

import torch

from device.place import Place, Row, cloned, collect
from fp4bench.clocks import Call
from fp4kernels import finished_gate, gate
from fp4kernels.epilogues import Activation, Epilogue, FinishedLauncher, beside, empty_output
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import STEADY_M, VARIANTS, default_candidate, variant
from fp4kernels.variants import Candidate, Launcher
from fp4kernels.workloads import GemmWorkload

EPILOGUES = (
    Epilogue(), Epilogue(Activation.GELU), Epilogue(Activation.SWIGLU),
    Epilogue(Activation.NONE, "mxfp4"), Epilogue(Activation.SWIGLU, "nvfp4"),
)  # fmt: skip
RECIPES = ("mxfp4", "nvfp4-w4a16")
DENSE = ("mxfp4", "mxfp4-w4a16", "nvfp4-w4a16")


def shapes(place: Place, *ms: int) -> list[GemmWorkload]:
    return [GemmWorkload(m if not place.small else min(m, 33), 96 if place.small else 4096,
                         128 if place.small else 4096) for m in ms]  # fmt: skip


def chosen(place: Place, work: GemmWorkload, recipe: str, steady: bool = False) -> Candidate:
    return default_candidate(
        work, recipe_named(recipe), place.device, place.toolchain, batch_invariant=steady
    )


def case_of(place: Place, work: GemmWorkload, recipe: str) -> gate.Case:
    size = (work.m, work.n, work.k)
    return gate.synthetic_case("gaussian", recipe_named(recipe), size, 5, place.torch_device)


def epilogues(place: Place) -> list[Row]:
    every = itertools.product(RECIPES, shapes(place, 16, 4096), EPILOGUES)
    share = 1 / (len(RECIPES) * 2 * len(EPILOGUES))
    return collect(
        (f"{recipe} {work.label} {epilogue.activation} {epilogue.recipe}".strip(),
         functools.partial(epilogue_row, place, recipe, work, epilogue, share))
        for recipe, work, epilogue in every
    )  # fmt: skip


def epilogue_row(
    place: Place, recipe: str, work: GemmWorkload, epilogue: Epilogue, share: float
) -> Row:
    """With a bias and a residual: through the gate, then timed beside a pass of its own."""
    one, case = chosen(place, work, recipe), case_of(place, work, recipe)
    kernel, how = variant(one.variant), recipe_named(recipe)
    here = (one.config, how, place.device, place.toolchain)
    fused = kernel.build_finished(epilogue, *here)
    outcome = finished_gate.check(
        fused, kernel.layout, kernel.accumulator_unit(one.config), case, epilogue
    )
    if outcome.why is not None:
        raise AssertionError(outcome.why)
    added = finished_gate.draw(case, epilogue, 5)
    out = empty_output(work.m, work.n, epilogue, torch.bfloat16, place.torch_device)
    held = case.weight(kernel.layout)
    copies = cloned(held, place.copies(held.codes.nbytes))

    def calls(launch: FinishedLauncher) -> list[Call]:
        return [functools.partial(launch, case.x, w, added, out) for w in copies]

    apart = beside(kernel.build(*here), epilogue)
    found = place.race({"fused": calls(fused), "unfused": calls(apart)}, share)
    why = kernel.unfused(epilogue, one.config)
    return {**found, "candidate": one.key, "used": outcome.used, "not_fused": why,
            "times_unfused": found["unfused"] / found["fused"]}  # fmt: skip


def launches(place: Place, one: Candidate, case: gate.Case, out: torch.Tensor) -> list[Call]:
    held = case.weight(one.layout)
    launch = built(place, one)
    return [functools.partial(launch, case.x, w, out)
            for w in cloned(held, place.copies(held.codes.nbytes))]  # fmt: skip


def built(place: Place, one: Candidate) -> Launcher:
    how = recipe_named(one.recipe)
    return variant(one.variant).build(one.config, how, place.device, place.toolchain)


def invariance(place: Place) -> list[Row]:
    every = itertools.product(("mxfp4", "nvfp4-w4a16"), shapes(place, 1, 16, 512, 4096))
    return collect(
        (f"{recipe} {work.label}", functools.partial(invariance_row, place, recipe, work))
        for recipe, work in every
    )


def invariance_row(place: Place, recipe: str, work: GemmWorkload) -> Row:
    """The first row has the bits that it has among STEADY_M, and what that costs."""
    many = case_of(place, GemmWorkload(max(work.m, STEADY_M), work.n, work.k), recipe)
    steady = chosen(place, work, recipe, steady=True)
    other = chosen(place, GemmWorkload(STEADY_M, work.n, work.k), recipe, steady=True)
    first = []
    for one, rows in ((steady, work.m), (other, STEADY_M)):
        out = torch.empty(rows, work.n, dtype=torch.bfloat16, device=place.torch_device)
        x = many.x[:rows] if isinstance(many.x, torch.Tensor) else many.x._replace(
            codes=many.x.codes[:rows].contiguous(), scales=many.x.scales[:rows].contiguous()
        )  # fmt: skip
        built(place, one)(x, many.weight(one.layout), out)
        first.append(out[0])
    if not torch.equal(*first):
        differ = int((first[0] != first[1]).sum())
        raise AssertionError(f"{differ} of {work.n} bits of a row differ between M and {STEADY_M}")
    case, free = case_of(place, work, recipe), chosen(place, work, recipe)
    out = torch.empty(work.m, work.n, dtype=torch.bfloat16, device=place.torch_device)
    found = place.race({
        "steady": launches(place, steady, case, out), "free": launches(place, free, case, out),
    }, 0.12)  # fmt: skip
    return {**found, "candidate": steady.key, "free_candidate": free.key,
            "cost": found["steady"] / found["free"]}  # fmt: skip


def dense(place: Place) -> list[Row]:
    every = itertools.product(DENSE, shapes(place, 64, 512, 4096))
    return collect(
        (f"{recipe} {work.label}", functools.partial(dense_row, place, recipe, work))
        for recipe, work in every
    )


def dense_row(place: Place, recipe: str, work: GemmWorkload) -> Row:
    """What runs untuned, beside expanding first and a dense product in bf16."""
    case, how = case_of(place, work, recipe), recipe_named(recipe)
    free = chosen(place, work, recipe)
    out = torch.empty(work.m, work.n, dtype=torch.bfloat16, device=place.torch_device)
    contenders = {"chosen": launches(place, free, case, out)}
    expand = VARIANTS["expand_dense"]
    if expand.takes(how, place.device, place.toolchain) is None:
        config = expand.default(work, how, place.device)
        floor = Candidate(recipe, expand.name, expand.layout, config)
        contenders["expand_dense"] = launches(place, floor, case, out)
    x, w = (torch.randn(rows, work.k, device=place.torch_device).bfloat16()
            for rows in (work.m, work.n))  # fmt: skip
    weights = [w.clone() for _ in range(place.copies(w.nbytes))]
    contenders["bf16"] = [functools.partial(torch.nn.functional.linear, x, one) for one in weights]
    found = place.race(contenders, 0.1)
    floor_ns = found.get("expand_dense")
    return {**found, "candidate": free.key, "times_bf16": found["bf16"] / found["chosen"],
            "times_expand_dense": floor_ns and floor_ns / found["chosen"]}  # fmt: skip
