"""Spaces and studies: legal, complete, without repeats, defaults first."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from fp4bench.proof.targets import ARCHES
from fp4bench.spaces import EFFORTS, Space, values_of
from fp4bench.study import Study
from fp4bench.trials import Status
from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import FALLBACK, VARIANTS, default_candidate
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload
from samples import failed_trial, passed_trial

H100 = Device("cuda", "NVIDIA H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30)
BOTH = ("mxfp4", "nvfp4")


@pytest.fixture
def vnni(cpu: Device) -> Device:
    return dataclasses.replace(cpu, arch="x86_64-avx512vnni")


@pytest.fixture
def with_compiler(toolchain: Toolchain) -> Toolchain:
    return dataclasses.replace(toolchain, compiler="c++", triton="3.9.0")


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != FALLBACK.name])
def test_the_toml_has_exactly_the_fields_of_the_config(name: str, effort: str) -> None:
    variant = VARIANTS[name]
    fields = [field.name for field in dataclasses.fields(variant.config_type)]
    assert [*values_of(variant, effort)] == fields


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("m", [1, 2, 3, 8, 16, 24, 100, 512, 4096])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_default_is_legal_and_inside_the_space(
    effort: str, m: int, kind: str, vnni: Device, with_compiler: Toolchain
) -> None:
    device = vnni if kind == "cpu" else H100
    space = Space(GemmWorkload(m, 4096, 4096), BOTH, device, with_compiler, effort)
    for recipe in BOTH:
        default = space.default(recipe)
        assert space.illegal(default) is None
        table = space.values[default.variant]
        assert all(value in table[name] for name, value in default.config.values().items())
        assert space.candidates[recipe][0] == default


def test_without_compiler_and_gpu_the_torch_reference_is_all_there_is(
    cpu: Device, toolchain: Toolchain
) -> None:
    bare = dataclasses.replace(toolchain, compiler=None)
    space = Space(GemmWorkload(8, 64, 64), BOTH, cpu, bare, "quick")
    assert {c.variant for cs in space.candidates.values() for c in cs} == {"torch_expand"}
    study = Study(space, 0)
    assert len(study.ask_for(BOTH, 1)) == 2
    assert study.ask_for(BOTH, 1) == []


def test_a_study_proposes_all_candidates_once_defaults_first(
    vnni: Device, with_compiler: Toolchain
) -> None:
    space = Space(GemmWorkload(8, 64, 64), BOTH, vnni, with_compiler, "quick")
    study = Study(space, seed=3)
    seen: list[Candidate] = []
    while batch := study.ask_for(BOTH, 1):
        for candidate in batch:
            seen.append(candidate)
            if len(seen) % 3:
                study.tell(passed_trial(1000.0 + len(seen), candidate))
            else:
                study.tell(failed_trial(Status.WRONG, "no", candidate))
    assert seen[:2] == [space.default(recipe) for recipe in BOTH]
    assert len(seen) == len(set(seen))
    assert set(seen) == {c for cs in space.candidates.values() for c in cs}


def test_a_recipe_whose_default_failed_is_asked_no_more(
    vnni: Device, with_compiler: Toolchain
) -> None:
    study = Study(Space(GemmWorkload(8, 64, 64), BOTH, vnni, with_compiler, "quick"), seed=0)
    failing, passing = study.ask_for(BOTH, 1)
    study.tell(failed_trial(Status.WRONG, "no", failing))
    study.tell(passed_trial(1000.0, passing))
    assert {candidate.recipe for candidate in study.ask_for(BOTH, 3)} == {passing.recipe}


def test_what_an_earlier_run_tried_is_not_proposed_again(
    vnni: Device, with_compiler: Toolchain
) -> None:
    space = Space(GemmWorkload(8, 64, 64), BOTH, vnni, with_compiler, "quick")
    known, unknown = space.candidates["mxfp4"][:5], space.candidates["mxfp4"][5:]
    study = Study(space, seed=0)
    for candidate in known:
        study.tell(passed_trial(1000.0, candidate))
    asked = [study.ask("mxfp4") for _ in unknown]
    assert set(asked) == set(unknown)
    assert study.ask("mxfp4") is None


def test_the_sampler_learns(vnni: Device, with_compiler: Toolchain) -> None:
    """On a separable objective, a quarter of the space must hold the best and beat chance."""
    space = Space(GemmWorkload(512, 4096, 4096), BOTH, vnni, with_compiler, "quick")
    study, costs = Study(space, seed=1), []

    def cost(candidate: Candidate) -> float:
        values = candidate.config.values()
        return 1e6 / values["mr"] / values["panels"] + 1e3 * values["prefetch"] + values["mc"]

    everything = [cost(candidate) for candidate in space.candidates["mxfp4"]]
    for _ in range(len(everything) // 4):
        candidate = study.ask("mxfp4")
        assert candidate is not None
        costs.append(cost(candidate))
        study.tell(passed_trial(costs[-1], candidate))
    assert min(costs) == min(everything)
    assert statistics.mean(costs) < 0.8 * statistics.mean(everything)


@pytest.mark.parametrize(
    ("arch", "recipe", "m", "name"),
    [
        ("sm_100", "mxfp4", 4096, "dot_scaled_swizzled"),
        ("sm_120", "nvfp4", 128, "dot_scaled_swizzled"),
        ("sm_100", "mxfp4", 64, "decode_bf16"),  # the weights are all there is to read
        ("sm_100", "mxfp4-w4a16", 4096, "decode_bf16"),  # nothing is native with one bf16 operand
        ("sm_90", "mxfp4", 4096, "decode_bf16"),
        ("gfx950", "mxfp4", 4096, "dot_scaled"),
        ("gfx942", "nvfp4", 1, "dot_scaled"),  # the only one there
    ],
)
def test_native_instructions_lead_where_arithmetic_is_what_counts(
    arch: str, recipe: str, m: int, name: str, with_compiler: Toolchain
) -> None:
    workload = GemmWorkload(m, 4096, 4096)
    chosen = default_candidate(workload, RECIPES[recipe], ARCHES[arch], with_compiler)
    assert chosen.variant == name
    assert chosen.layout is VARIANTS[name].layout
