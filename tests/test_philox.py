"""Philox4x32-10 against its published vectors, and what is drawn from it."""

from __future__ import annotations

import pytest
import torch

from fp4kernels import reference
from fp4kernels.errors import FormatError
from fp4kernels.philox import Philox, philox
from fp4kernels.recipes import RECIPES, Recipe, Rounding
from fp4kernels.simulate import approximate

ONES = 0xFFFFFFFF
# counter, key, words: Random123's kat_vectors
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
STOCHASTIC = Recipe("sr", RECIPES["nvfp4"].format, RECIPES["nvfp4"].scale_rule, Rounding.STOCHASTIC)


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], words: object) -> None:
    found = philox(torch.tensor(counter).view(4, 1), key).flatten().tolist()
    assert tuple(found) == words


def test_a_draw_depends_on_the_seed_and_its_place_alone() -> None:
    draws = Philox(5).uniform((10, 7))
    assert draws.shape == (10, 7)
    assert torch.equal(draws.flatten()[:33], Philox(5).uniform((33,)))
    assert not torch.equal(draws, Philox(6).uniform((10, 7)))
    assert not torch.equal(draws, Philox(5 + (1 << 40)).uniform((10, 7)))
    words = philox(torch.tensor([[3], [0], [0], [0]]), (5, 1 << 8)).flatten()
    assert torch.equal(Philox(5 + (1 << 40)).uniform((16,))[12:], (words >> 8) * 2.0**-24)
    assert Philox(0).uniform((0, 4)).shape == (0, 4)


def test_draws_are_uniform() -> None:
    draws = Philox(1).uniform((1 << 18,))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.equal(draws * 2.0**24, (draws * 2.0**24).round())
    counts = torch.histc(draws, 64, 0, 1)
    chi = ((counts - 4096).square() / 4096).sum()
    assert 30 < chi < 110  # 63 degrees of freedom
    for step in (1, 4, 64):  # neighbours in and across counters
        assert abs(torch.corrcoef(torch.stack((draws[:-step], draws[step:])))[0, 1]) < 0.01


def test_the_reference_rounds_by_it_without_bias() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    backs = torch.stack([approximate(x, STOCHASTIC, Philox(seed)) for seed in range(64)])
    of_one = (backs - x).square().sum() / 64
    assert (backs.mean(0) - x).square().sum() * 64 == pytest.approx(of_one.item(), rel=0.06)
    one, same = (reference.quantize(x, STOCHASTIC, Philox(3)) for _ in range(2))
    assert torch.equal(one.codes, same.codes)


def test_bytes_do_not_depend_on_how_many_values_are_rounded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    whole = reference.quantize(x, STOCHASTIC, Philox(3))
    monkeypatch.setattr(reference, "CHUNK", 1000)
    assert torch.equal(reference.quantize(x, STOCHASTIC, Philox(3)).codes, whole.codes)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_has_64_bits(seed: int) -> None:
    with pytest.raises(FormatError, match=f"below 2\\^64, but got {seed}"):
        Philox(seed)
