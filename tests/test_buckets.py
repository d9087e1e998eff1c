"""An M between the tuned ones of a model runs, by the static model, within 10% of tuning that M."""

from __future__ import annotations

import pytest

from fp4bench.boards import BOARDS
from fp4bench.errors import BenchError
from fp4bench.static.buckets import Buckets
from fp4bench.workloads import from_preset
from fp4kernels.devices import Toolchain
from fp4kernels.workloads import GemmWorkload

TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
ALLOWED = 1.10
TUNED = sorted({problem.workload.m for problem in from_preset("llama-3.1-8b", None)})


def buckets(board: str, recipe: str, n: int, k: int, tuned: list[int]) -> Buckets:
    return Buckets(BOARDS[board], TOOLCHAIN, recipe, GemmWorkload(1, n, k), tuned)


@pytest.mark.parametrize(
    ("board", "recipe", "n", "k", "ms"),
    [
        ("h100", "mxfp4", 4096, 4096, (48, 384)),
        ("h100", "nvfp4-w4a16", 4096, 14336, (24,)),
        ("b200", "mxfp4-w4a16", 6144, 4096, (96,)),
        ("b200", "nvfp4", 28672, 4096, (700,)),
    ],
)
def test_between_buckets(board: str, recipe: str, n: int, k: int, ms: tuple[int, ...]) -> None:
    """All shapes of the model: scripts/check_static_buckets.py."""
    of = buckets(board, recipe, n, k, TUNED)
    assert {m: loss for m in ms if (loss := of.loss(m)) > ALLOWED} == {}


def test_too_few_buckets_are_seen() -> None:
    """What the test above must be able to find: rows for 256 are too many for 64."""
    assert buckets("h100", "mxfp4", 4096, 4096, [16, 256]).loss(64) > 1.5


def test_a_tuned_m_loses_nothing_and_no_bucket_is_an_error() -> None:
    of = buckets("h100", "mxfp4", 4096, 4096, [16])
    assert of.loss(16) == 1.0
    with pytest.raises(BenchError, match="M=17 is past the last bucket, 16"):
        of.loss(17)
