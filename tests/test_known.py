"""The tables that ship with fp4bench: what they hold can be tried where they say."""

from __future__ import annotations

from dataclasses import replace

from fp4bench import known
from fp4bench.spaces import Space
from fp4kernels.devices import Device, Toolchain

EPYC = Device("cpu", "AMD EPYC", "x86_64-avx512vnni", 2, 32 << 20, 0, 16 << 30)
TOOLCHAIN = Toolchain("2.13.0", None, None, "c++", "c++ 12")


def test_every_choice_is_one_that_the_default_search_would_try() -> None:
    choices = known.choices(EPYC)
    assert choices
    for workload, candidate in choices:
        space = Space(workload, (candidate.recipe,), EPYC, TOOLCHAIN, "quick")
        assert candidate in space.candidates[candidate.recipe], (workload.label, candidate.key)


def test_another_architecture_has_none() -> None:
    assert known.choices(replace(EPYC, arch="x86_64-portable")) == []
