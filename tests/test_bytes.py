"""The byte-level transformer over FP4 caches: what scripts/check_bytes.py measures, on less text."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import check_bytes  # noqa: E402
from byte_model import bits  # noqa: E402

BYTES, CHUNK = 64, 32  # of each piece, and read at once


@pytest.fixture(scope="module")
def subject() -> check_bytes.Subject:
    whole = check_bytes.load()
    return replace(whole, text=whole.text[:, : BYTES + 1])


@pytest.fixture(scope="module")
def before(subject: check_bytes.Subject) -> torch.Tensor:
    return check_bytes.predicted(subject, check_bytes.Bfloat16(), CHUNK)


def test_a_bfloat16_cache_changes_little(
    subject: check_bytes.Subject, before: torch.Tensor
) -> None:
    with torch.no_grad():
        plain = subject.model(subject.text[:, :-1])
    assert float((plain.argmax(-1) == before.argmax(-1)).float().mean()) >= 0.99
    assert float(bits(before, subject.text)) == pytest.approx(
        float(bits(plain, subject.text)), abs=0.01
    )
    assert float(bits(before, subject.text)) < 3.0  # short contexts; noise has 8


@pytest.mark.parametrize(("recipe", "k_mean", "agreement", "kl"), [
    ("nvfp4", False, 0.93, 0.02), ("nvfp4,rotate=1", True, 0.93, 0.02),
    ("mxfp4", False, 0.90, 0.05), ("k8v4", False, 0.96, 0.01),
])  # fmt: skip
def test_predictions_over_fp4_caches(
    subject: check_bytes.Subject, before: torch.Tensor, recipe: str, k_mean: bool,
    agreement: float, kl: float,
) -> None:  # fmt: skip
    """Bounds well below what all of the text gives, in results/attention/bytes.jsonl."""
    found = check_bytes.row(subject, recipe, k_mean, CHUNK, before)
    assert found.predictions == 8 * BYTES
    assert agreement <= found.agreement < 1
    assert 0 < found.kl <= kl


def test_a_byte_at_a_time_is_a_chunk_at_a_time(subject: check_bytes.Subject) -> None:
    few = replace(subject, text=subject.text[:2, :9])
    one, all_at_once = (
        check_bytes.predicted(few, check_bytes.Cached(few, "nvfp4", False), chunk)
        for chunk in (1, 8)
    )
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-3)


def test_missed_marks_are_said(subject: check_bytes.Subject, before: torch.Tensor) -> None:
    good = check_bytes.row(subject, "nvfp4", False, CHUNK, before)
    rows = [
        replace(good, recipe=recipe, k_mean=k_mean, agreement=0.995)
        for recipe in check_bytes.RECIPES
        for k_mean in (False, True)
    ]
    assert check_bytes.missed(rows) == []
    poor = [
        replace(each, agreement=0.96 if each.recipe.startswith("nvfp4") else 0.98) for each in rows
    ]
    assert [line.split(" agrees")[0] for line in check_bytes.missed(poor)] == [
        "NVFP4 with K as it is, rotated or less its mean", "K8V4",
    ]  # fmt: skip
