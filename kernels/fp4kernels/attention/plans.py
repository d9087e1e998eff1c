"""What a table holds of attention: which candidate decodes or prefills how much of what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fp4kernels.attention import gate
from fp4kernels.attention.cases import odd_cases
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError, Fp4Error, TableError
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate


class AttentionKey(NamedTuple):
    """What has a plan of its own."""

    phase: str
    heads: int
    kv_heads: int
    head_dim: int
    recipe: str  # as AttentionRecipe.text

    @property
    def label(self) -> str:
        return f"{self.phase} {self.heads}/{self.kv_heads}×{self.head_dim} {self.recipe}"

    def workload(self, batch: int, keys: int) -> AttentionWorkload:
        """An example of it."""
        decoding = self.phase == Phase.DECODE
        return AttentionWorkload(
            Phase(self.phase), batch, 1 if decoding else keys, keys, self.heads, self.kv_heads,
            self.head_dim, page_size=64 if decoding else 0,
        )  # fmt: skip


class Bucket(NamedTuple):
    """The sizes that a candidate was tuned for."""

    batch: int
    keys: int
    candidate: Candidate


@dataclass(frozen=True)
class AttentionPlan:
    """Total over batch and keys: the candidate of the nearest sizes, as ratios go; of two as near,
    of the larger."""

    buckets: tuple[Bucket, ...]

    def choose(self, batch: int, keys: int) -> Candidate:
        def apart(bucket: Bucket) -> tuple[float, int, int]:
            ratios = bucket.batch / max(batch, 1), bucket.keys / max(keys, 1)
            far = sum(abs(math.log(ratio)) for ratio in ratios)
            return round(far, 9), -bucket.keys, -bucket.batch

        return min(self.buckets, key=apart).candidate


def to_json(plans: Mapping[AttentionKey, AttentionPlan]) -> list[dict[str, Any]]:
    return [
        {
            **key._asdict(),
            "buckets": [
                {"batch": batch, "keys": keys, **candidate.to_json()}
                for batch, keys, candidate in plan.buckets
            ],
        }
        for key, plan in plans.items()
    ]


def from_json(
    values: Any, device: Device, toolchain: Toolchain
) -> dict[AttentionKey, AttentionPlan]:
    """From untrusted input; every candidate can run on the table's own device.

    Raises KeyError, TypeError, FormatError, WorkloadError or TableError.
    """
    found: dict[AttentionKey, AttentionPlan] = {}
    for entry in values:
        key = AttentionKey(*(entry[name] for name in AttentionKey._fields))
        if [type(part) for part in key] != [str, int, int, int, str]:
            raise TableError(f"attention is a phase, three sizes and a recipe, but got {key}")
        if key in found:
            raise TableError(f"a table has one entry for each attention, but {key.label} is twice")
        found[key] = AttentionPlan(
            tuple(_bucket(each, key, device, toolchain) for each in entry["buckets"])
        )
        if not found[key].buckets:
            raise TableError(f"a plan has at least one bucket, but {key.label} has none")
    return found


def candidate_text(candidate: Candidate) -> str:
    """The form in which an op carries its candidate."""
    return json.dumps(candidate.to_json())


def lookup(plans: Mapping[AttentionKey, AttentionPlan], key: AttentionKey) -> AttentionPlan:
    """Raises TableError where it was not tuned."""
    if key in plans:
        return plans[key]
    tuned = ", ".join(sorted(one.label for one in plans)) or "none"
    raise TableError(
        f"the table has no {key.label}; tune it with `fp4bench tune attention --recipe {key.recipe}` "
        f"for a model of such heads (tuned: {tuned})"
    )


def failures(
    plans: Mapping[AttentionKey, AttentionPlan], device: Device, toolchain: Toolchain
) -> dict[str, str]:
    """Every distinct candidate through the gate on small inputs: key → why it failed."""
    found = {}
    for key, plan in plans.items():
        for candidate in dict.fromkeys(bucket.candidate for bucket in plan.buckets):
            why = _failure(key, candidate, device, toolchain)
            if why is not None:
                found[f"{key.label} {candidate.key}"] = why
    return found


def _failure(
    key: AttentionKey, candidate: Candidate, device: Device, toolchain: Toolchain
) -> str | None:
    kernel, recipe = ATTENTION_VARIANTS[candidate.variant], attention_recipe(candidate.recipe)
    rounding, tile = (
        kernel.rounding(candidate.config, recipe, device),
        kernel.tile(candidate.config),
    )
    try:
        launch = kernel.build(candidate.config, recipe, device, toolchain)
        where: torch.device = device.torch_device
        for case in odd_cases(key.workload(1, 64), recipe, 0, where):
            outcome = gate.check(launch, rounding, case, tile)
            if outcome.why is not None:
                return outcome.why
    except Fp4Error as error:
        return str(error)
    return None


def _bucket(values: Any, key: AttentionKey, device: Device, toolchain: Toolchain) -> Bucket:
    sizes = values["batch"], values["keys"]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise FormatError(f"a bucket has a batch and keys of at least 1, but got {sizes}")
    candidate = candidate_from_json(values)
    work, recipe = key.workload(*sizes), attention_recipe(key.recipe)
    if candidate.recipe != key.recipe:
        raise TableError(f"{candidate.key} may not run {key.label}: its recipe is another")
    kernel = ATTENTION_VARIANTS.get(candidate.variant)
    if kernel is None:
        raise TableError(f"{candidate.key} may not run {key.label}: it is no attention")
    why = kernel.takes(recipe, device, toolchain) or kernel.malformed(candidate.config, recipe)
    if kernel.phase != key.phase:
        why = f"it does {kernel.phase}"
    if why is not None:
        raise TableError(f"{candidate.key} may not run {work.label}: {why}")
    return Bucket(*sizes, candidate)
