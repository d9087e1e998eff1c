"""Tuned tables: which candidate runs a problem, pinned for one device."""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

from fp4kernels import gate
from fp4kernels.attention import plans
from fp4kernels.attention.plans import AttentionKey, AttentionPlan
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from fp4kernels.errors import FormatError, Fp4Error, LayoutError, TableError
from fp4kernels.layouts import Layout
from fp4kernels.qtensor import QTensor
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import STEADY_M, candidate_from_json, steady, variant
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

SCHEMA = 1
D = TypeVar("D", Device, Toolchain)
Problem = tuple[str, int, int, str]  # op, N, K, recipe


class TableWarning(UserWarning):
    """The table was made with other versions than are installed."""


@dataclass(frozen=True)
class Plan:
    """The candidates of one (op, N, K, recipe): (largest M, candidate), ascending.

    Total over M: an M runs as the smallest bucket that holds it; past the last, as the last.
    """

    buckets: tuple[tuple[int, Candidate], ...]

    # the form in which the linear op carries a plan; made here, since a traced graph cannot
    text: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", json.dumps(self.to_json()))

    def choose(self, m: int) -> Candidate:
        return next((c for largest, c in self.buckets if m <= largest), self.buckets[-1][1])

    def choose_steady(self, m: int) -> Candidate:
        """The candidate for M of a batch-invariant product: over all M one order of summing.

        That of M = 64 or, where its kernel cannot, of the largest bucket that can. Raises
        TableError where none can.
        """
        wanted = [self.choose(STEADY_M), *(c for _, c in reversed(self.buckets))]
        fixed = next((c for c in wanted if variant(c.variant).varies is None), None)
        if fixed is None:
            name = wanted[0].variant
            raise TableError(
                f"a batch-invariant product sums in one order for every M, but {name} "
                f"{variant(name).varies}; call linear without the table"
            )
        return steady(self.choose(m), fixed)

    @property
    def layout(self) -> Layout:
        return self.buckets[0][1].layout

    def to_json(self) -> list[dict[str, Any]]:
        return [{"m": m, **candidate.to_json()} for m, candidate in self.buckets]

    @staticmethod
    def from_json(values: Any) -> Plan:
        """From untrusted input. Raises FormatError."""
        if not isinstance(values, list) or not values:
            raise FormatError("a plan is a list of at least one bucket")
        buckets = tuple((_bucket_m(value), candidate_from_json(value)) for value in values)
        if len({c.layout for _, c in buckets}) > 1 or list(buckets) != sorted(
            buckets, key=lambda bucket: bucket[0]
        ):
            raise FormatError("a plan's buckets ascend in M and share one layout")
        return Plan(buckets)


@dataclass(frozen=True)
class Table:
    """Plans by (op, N, K, recipe) and those of attention, the device and toolchain they were made
    on, and provenance."""

    device: Device
    toolchain: Toolchain
    plans: Mapping[Problem, Plan]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[AttentionKey, AttentionPlan] = field(default_factory=dict)

    def lookup(self, n: int, k: int, recipe: str, op: str = "gemm") -> Plan:
        """Raises TableError where the problem was not tuned."""
        plan = self.plans.get((op, n, k, recipe))
        if plan is None:
            tuned = sorted({f"{n}x{k} {r}" for _, n, k, r in self.plans})
            raise TableError(
                f"the table has no {op} of N={n}, K={k} in {recipe}; tune it with "
                f"`fp4bench tune --shape Mx{n}x{k} --recipe {recipe}` (tuned: {', '.join(tuned)})"
            )
        return plan

    def lookup_attention(self, key: AttentionKey) -> AttentionPlan:
        """Raises TableError where such attention was not tuned."""
        return plans.lookup(self.attention, key)

    def arrange(self, w: QTensor) -> QTensor:
        """The weight in the layout that the table's kernels read: done once, then held so."""
        if w.dim() != 2:
            raise LayoutError(f"a weight is a matrix, but got shape {tuple(w.shape)}")
        return w.to_layout(self.lookup(w.shape[0], w.shape[1], w.recipe_name).layout)

    def require(self, here: Device) -> None:
        """Raise TableError unless `here` has the architecture and cores of the table's device."""
        made, found = (f"{d.arch} with {d.cores} cores" for d in (self.device, here))
        if made != found:
            raise TableError(
                f"a table is tied to its device: it was made on {made}, but this is {found}; "
                "run `fp4bench tune` here"
            )

    def validate(self) -> dict[str, str]:
        """Run the gate on a small problem for every distinct candidate: key → why it failed."""
        candidates = {c.key: c for plan in self.plans.values() for _, c in plan.buckets}
        failures = {key: self._failure(candidate) for key, candidate in candidates.items()}
        found = {key: why for key, why in failures.items() if why is not None}
        return found | plans.failures(self.attention, self.device, self.toolchain)

    def _failure(self, candidate: Candidate) -> str | None:
        recipe, kernel = recipe_named(candidate.recipe), variant(candidate.variant)
        try:
            launch = kernel.build(candidate.config, recipe, self.device, self.toolchain)
        except Fp4Error as error:
            return str(error)
        high, wide = map(math.lcm, recipe.multiples, kernel.multiples)
        shape = (37, 83 // high * high, 5 * max(wide, 16))
        unit = kernel.accumulator_unit(candidate.config)
        for data in gate.DATA:
            case = gate.synthetic_case(data, recipe, shape, 0, self.device.torch_device)
            outcome = gate.check(launch, kernel.layout, unit, case, torch.bfloat16)
            if outcome.why is not None:
                return outcome.why
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON atomically."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(self._to_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(target)

    def _to_json(self) -> dict[str, Any]:
        entries = [
            {"op": op, "n": n, "k": k, "recipe": recipe, "buckets": plan.to_json()}
            for (op, n, k, recipe), plan in self.plans.items()
        ]
        attention = {"attention": plans.to_json(self.attention)} if self.attention else {}
        return {
            "schema": SCHEMA,
            "device": asdict(self.device),
            "toolchain": asdict(self.toolchain),
            "provenance": dict(self.provenance),
            "entries": entries,
            **attention,
        }

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Table:
        """Read a table made for the device at hand.

        Raises TableError if the file is damaged, if it was made on another architecture or number
        of cores, or if a kernel no longer passes the gate. Other minor versions of the toolchain
        warn (TableWarning) and put every kernel through the gate again.
        """
        table = Table.read(path)
        here = probe_device(table.device.kind)
        table.require(here)
        if table.device.name != here.name:
            warnings.warn(
                f"{path} was made on {table.device.name}, but this is {here.name}, of the same "
                "architecture: its timings may not hold; run `fp4bench tune` here",
                TableWarning,
                stacklevel=2,
            )
        toolchain = probe_toolchain(here.kind)
        if toolchain.minor() != table.toolchain.minor():
            return _revalidated(table, here, toolchain, str(path))
        return replace(table, device=here, toolchain=toolchain)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Table:
        """Parse a table made on any device. Raises TableError."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
            if values["schema"] != SCHEMA:
                raise TableError(f"a table has schema {SCHEMA}, but {path} has {values['schema']}")
            device = _dataclass_from(Device, values["device"])
            toolchain = _dataclass_from(Toolchain, values["toolchain"])
            entries = [_plan_of(entry, device, toolchain) for entry in values["entries"]]
            products = dict(entries)
            if len(products) != len(entries):
                raise TableError("a table has one entry for each problem, but one is there twice")
            attention = plans.from_json(values.get("attention", []), device, toolchain)
            return Table(device, toolchain, products, dict(values["provenance"]), attention)
        except OSError as error:
            raise TableError(f"cannot read the table {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, TableError):
                raise
            lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise TableError(f"{path} is no fp4bench table: {lacks}") from error


def _revalidated(table: Table, device: Device, toolchain: Toolchain, path: str) -> Table:
    made, found = (
        ", ".join(v for v in chain.minor() if v is not None)
        for chain in (table.toolchain, toolchain)
    )
    warnings.warn(
        f"{path} was made with {made}, but this is {found}; its "
        "kernels go through the gate again, and its timings may no longer hold",
        TableWarning,
        stacklevel=3,
    )
    fresh = replace(table, device=device, toolchain=toolchain)
    failures = fresh.validate()
    if failures:
        key, why = next(iter(failures.items()))
        raise TableError(f"{len(failures)} kernels of {path} fail here; first {key}: {why}")
    return fresh


def _dataclass_from(kind: type[D], values: Any) -> D:
    types = get_type_hints(kind)
    if (
        not isinstance(values, dict)
        or set(values) != set(types)
        or not all(isinstance(value, types[name]) for name, value in values.items())
        or any(isinstance(value, bool) for value in values.values())
    ):
        raise TableError(f"a {kind.__name__} has the fields {types}, but got {values}")
    return kind(**values)


def _plan_of(entry: Any, device: Device, toolchain: Toolchain) -> tuple[Problem, Plan]:
    """One entry of a file, every candidate legal for its problem on the table's own device."""
    key = (entry["op"], entry["n"], entry["k"], entry["recipe"])
    if [type(part) for part in key] != [str, int, int, str]:
        raise TableError(f"an entry has a text op and recipe and integers n and k, but got {key}")
    plan = Plan.from_json(entry["buckets"])
    for m, candidate in plan.buckets:
        recipe, kernel = recipe_named(candidate.recipe), variant(candidate.variant)
        workload = GemmWorkload(m, key[1], key[2])
        workload.check(recipe)
        why = kernel.takes(recipe, device, toolchain) or kernel.malformed(candidate.config, recipe)
        if candidate.recipe != key[3]:
            why = f"its recipe is not {key[3]}"
        if why is not None:
            raise TableError(f"{candidate.key} may not run {workload.label}: {why}")
    return key, plan


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _bucket_m(value: Any) -> int:
    m = value.get("m") if isinstance(value, dict) else None
    if type(m) is not int or m < 1:
        raise FormatError(f"a bucket has a positive integer m, but got {m!r}")
    return m


@functools.lru_cache(maxsize=4096)
def parse_plan(text: str) -> Plan:
    """A Plan from the JSON text that the linear op carries."""
    return Plan.from_json(json.loads(text))
