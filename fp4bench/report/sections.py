"""What the report says: results arranged by device, toolchain and policy."""

from __future__ import annotations

import shlex
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fp4bench.evidence import Evidence
from fp4bench.limits import latest
from fp4bench.summary import Line, summarize
from fp4bench.trials import (
    BANDWIDTHS,
    PEAKS,
    FailedTrial,
    Limits,
    PassedTrial,
    Policy,
    Race,
    Status,
)
from fp4bench.workloads import SYNTHETIC
from fp4kernels.attention.workload import AttentionWorkload, Workload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.registry import any_variant
from fp4kernels.variants import Badge
from fp4kernels.workloads import GemmWorkload

_REASON_WIDTH = 400  # characters of an example; the whole text is in the raw rows


@dataclass(frozen=True)
class Entry:
    """A row of the table: a line, and what the page says beside it."""

    line: Line
    badge: Badge

    @property
    def size(self) -> int:
        """By which a table is filtered: M of a product, the keys of attention."""
        work = self.line.race.workload
        return work.keys if isinstance(work, AttentionWorkload) else work.m

    @property
    def slower_than_bf16(self) -> bool:
        """As printed: 0.996 is shown as 1.00, which is no loss."""
        return round(self.line.against_bf16.middle, 2) < 1

    @property
    def notes(self) -> list[str]:
        """What sets the workload apart from a bf16 forward pass over synthetic weights."""
        race, work = self.line.race, self.line.race.workload
        parts = [] if race.weights == SYNTHETIC else [race.weights]
        if isinstance(work, AttentionWorkload):
            return parts if work.dtype == "bfloat16" else [*parts, work.dtype]
        if work != GemmWorkload(work.m, work.n, work.k):
            parts.append(f"{work.role}, {work.activation_dtype} to {work.output_dtype}")
        return parts

    @property
    def command(self) -> str | None:
        """What measures this row again; None where the command line cannot say it."""
        race, work = self.line.race, self.line.race.workload
        if self.notes or isinstance(work, AttentionWorkload):
            return None
        shape = f"{work.m}x{work.n}x{work.k}"
        return shlex.join(["fp4bench", "tune", "--shape", shape, "--recipe", race.recipe])


@dataclass(frozen=True)
class Verdict:
    """Geometric means over entries; a tie counts as 1."""

    entries: Sequence[Entry]

    @property
    def speedup(self) -> float:
        return statistics.geometric_mean(
            entry.line.speedup.middle if entry.line.won else 1.0 for entry in self.entries
        )

    @property
    def against_bf16(self) -> float:
        return statistics.geometric_mean(entry.line.against_bf16.middle for entry in self.entries)

    @property
    def wins(self) -> int:
        return sum(entry.line.won for entry in self.entries)

    @property
    def slower(self) -> int:
        return sum(entry.slower_than_bf16 for entry in self.entries)

    @property
    def format_error_db(self) -> tuple[float, float]:
        errors = [entry.line.race.accuracy.format_error_db for entry in self.entries]
        return min(errors), max(errors)

    @property
    def badges(self) -> list[Badge]:
        return sorted({entry.badge for entry in self.entries})


@dataclass(frozen=True)
class History:
    """The trials of one workload, and the configurations that were the default."""

    workload: Workload
    weights: str
    trials: tuple[PassedTrial | FailedTrial, ...]
    defaults: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        source = "" if self.weights == SYNTHETIC else f", {self.weights}"
        return self.workload.label + source


@dataclass(frozen=True)
class Section:
    """All that one device, toolchain and policy measured of one operation: nothing is compared
    across sections."""

    device: Device
    toolchain: Toolchain
    policy: Policy
    op: str  # gemm or attention
    entries: tuple[Entry, ...]
    trials: tuple[PassedTrial | FailedTrial, ...]
    limits: Limits | None  # of the device, the last that were measured

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.entries)

    @property
    def recipes(self) -> list[str]:
        """Those with a race."""
        return sorted({entry.line.race.recipe for entry in self.entries})

    @property
    def by_recipe(self) -> list[tuple[str, Verdict]]:
        return [
            (name, Verdict([entry for entry in self.entries if entry.line.race.recipe == name]))
            for name in self.recipes
        ]

    @property
    def sizes(self) -> list[int]:
        return sorted({entry.size for entry in self.entries})

    @property
    def weights(self) -> list[str]:
        return sorted({entry.line.race.weights for entry in self.entries})

    @property
    def times(self) -> tuple[str, str]:
        times = [row.time for row in (*self.trials, *(entry.line.race for entry in self.entries))]
        return f"{min(times):%Y-%m-%d %H:%M:%S %Z}", f"{max(times):%Y-%m-%d %H:%M:%S %Z}"

    @property
    def possible(self) -> dict[str, float]:
        """The limits that are known, by the names that people use."""
        if self.limits is None:
            return {}
        units = {**dict.fromkeys(BANDWIDTHS, "GB/s"), **dict.fromkeys(PEAKS, "GFLOP/s")}
        known = {name: getattr(self.limits, name) for name in units}
        return {
            f"{name.replace('_', ' ')}, {units[name]}": value
            for name, value in known.items()
            if value is not None
        }

    @property
    def telemetry(self) -> dict[str, tuple[float, float]]:
        """The range of what was read beside the clock while the races ran."""
        races = [entry.line.race for entry in self.entries]
        seen: dict[str, list[float]] = {}
        for measurement in (m for race in races for m in (race.default, race.tuned, race.baseline)):
            for name, value in measurement.telemetry:
                if value is not None:
                    seen.setdefault(name, []).append(float(value))
        return {name: (min(values), max(values)) for name, values in sorted(seen.items())}

    @property
    def statuses(self) -> list[tuple[str, int, str]]:
        """Status, number of trials, most frequent reason."""
        counts = Counter(trial.status for trial in self.trials)
        reasons: dict[Status, Counter[str]] = {}
        for trial in self.trials:
            if isinstance(trial, FailedTrial):
                reasons.setdefault(trial.status, Counter())[trial.reason] += 1
        return [
            (str(status), counts[status], _example(reasons.get(status, Counter())))
            for status in Status
            if counts[status]
        ]

    @property
    def failures(self) -> int:
        return sum(isinstance(trial, FailedTrial) for trial in self.trials)

    @property
    def histories(self) -> list[History]:
        """In the order of the table."""
        trials: dict[tuple[Workload, str], list[PassedTrial | FailedTrial]] = defaultdict(list)
        for trial in self.trials:
            trials[trial.workload, trial.weights].append(trial)
        defaults: dict[tuple[Workload, str], list[Mapping[str, Any]]] = defaultdict(list)
        for race in (entry.line.race for entry in self.entries):
            defaults[race.workload, race.weights].append(race.default_values)
        found = [
            History(*key, tuple(own), tuple(defaults.get(key, ()))) for key, own in trials.items()
        ]
        return sorted(found, key=lambda h: (h.workload.place, h.name))


def arrange(evidence: Evidence) -> tuple[list[Section], list[str]]:
    """Sections in order of device, and one line for each thing that is left out of them."""
    entries: dict[_Setting, list[Entry]] = defaultdict(list)
    left_out = [f"{d.file.name}, line {d.line}, was skipped: {d.reason}" for d in evidence.damage]
    for line in summarize(evidence.races):
        kernel = any_variant(line.chosen.variant)
        badge = kernel.badge(kernel.recipe(line.race.recipe), line.race.device)
        entries[_setting(line.race)].append(Entry(line, badge))
    trials: dict[_Setting, list[PassedTrial | FailedTrial]] = defaultdict(list)
    for trial in evidence.trials:
        trials[_setting(trial)].append(trial)
    if orphans := sum(len(own) for key, own in trials.items() if key not in entries):
        left_out.append(
            f"{orphans} trials are only in the raw rows: "
            "no race was run on their device, toolchain and policy."
        )
    sections = [
        Section(*key, tuple(own), tuple(trials[key]), latest(evidence, key[0]))
        for key, own in entries.items()
    ]
    return sections, left_out


_Setting = tuple[Device, Toolchain, Policy, str]


def _setting(row: PassedTrial | FailedTrial | Race) -> _Setting:
    op = "attention" if isinstance(row.workload, AttentionWorkload) else "gemm"
    return row.device, row.toolchain, row.policy, op


def _example(reasons: Counter[str]) -> str:
    """The most frequent reason, with how often it was given where there are others."""
    if not reasons:
        return ""
    ((reason, count),) = reasons.most_common(1)
    often = f"{count} of {reasons.total()}: " if len(reasons) > 1 else ""
    return often + textwrap.shorten(reason, _REASON_WIDTH, placeholder=" …")
