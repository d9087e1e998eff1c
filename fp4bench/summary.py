"""The result in one line per workload and recipe: from the last race of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fp4bench.attainment import bound_of
from fp4bench.racing import Ratio, paired_ratio
from fp4bench.trials import Limits, Measurement, Race
from fp4kernels.variants import Candidate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Line:
    """One race, read: what to run, how much faster it is, how wrong the format is."""

    race: Race

    @cached_property
    def speedup(self) -> Ratio:
        """Default time over tuned time."""
        return paired_ratio(self.race.default, self.race.tuned)

    @cached_property
    def against_bf16(self) -> Ratio:
        """torch bf16 time over the chosen candidate's time."""
        return paired_ratio(self.race.baseline, self.measurement)

    @property
    def won(self) -> bool:
        return self.speedup.verdict == "win"

    @property
    def chosen(self) -> Candidate:
        """The tuned candidate where it won; a tie pins the default."""
        return self.race.tuned_candidate if self.won else self.race.default_candidate

    @property
    def measurement(self) -> Measurement:
        """Of the chosen candidate."""
        return self.race.tuned if self.won else self.race.default

    def share(self, most: Limits | None) -> float | None:
        """Of what the device could do at most, that the chosen candidate reaches: 1 is all."""
        bound = (
            None if most is None else bound_of(self.race, "tuned" if self.won else "default", most)
        )
        return None if bound is None else bound.ns / self.measurement.median_ns

    @property
    def speedup_text(self) -> str:
        """A win with its interval; else "tie", or that the default was faster and is kept."""
        r = self.speedup
        if self.won:
            return f"{r.middle:.2f}× [{r.low:.2f}, {r.high:.2f}]"
        return "tie" if r.verdict == "tie" else "default"


def newest(races: Iterable[Race]) -> list[Line]:
    """The last recorded race of every workload and recipe on each device, toolchain and policy.

    In the order of recording, whatever the clock said.
    """
    last: dict[tuple[object, ...], Race] = {}
    for race in races:
        key = (*race.identity, race.recipe)
        last.pop(key, None)
        last[key] = race
    return [Line(race) for race in last.values()]


def passes(races: Iterable[Race]) -> list[list[Race]]:
    """The last candidates' races of each thing: a run may race it several times, minutes apart."""
    groups: dict[tuple[object, ...], list[Race]] = {}
    for race in races:
        groups.setdefault((*race.identity, race.recipe), []).append(race)
    return [[r for r in own if _raced(r) == _raced(own[-1])] for own in groups.values()]


def pooled(races: Iterable[Race]) -> list[Race]:
    """Every thing's passes as one race."""
    return [joined(own) for own in passes(races)]


def summarize(races: Iterable[Race]) -> list[Line]:
    """The newest lines, ordered for people: by device, N, K, M and recipe."""
    return sorted(newest(races), key=_order)


def frame(lines: Iterable[Line], most: Limits | None = None) -> pd.DataFrame:
    """The table as data: times in microseconds, errors in dB, ratios above 1 are faster.

    `tuned_us` is what runs: the contender where it won, the default elsewhere. `share_of_limit`
    is known where the device's limits `most` are.
    """
    import pandas as pd  # slow to import, and most commands have no use for it

    return pd.DataFrame(
        {
            "device": line.race.device.name,
            "workload": line.race.workload.label,
            "recipe": line.race.recipe,
            "weights": line.race.weights,
            "default_us": line.race.default.median_ns / 1e3,
            "tuned_us": line.measurement.median_ns / 1e3,
            "verdict": line.speedup.verdict,
            "contender_speedup": line.speedup.middle,
            "contender_speedup_low": line.speedup.low,
            "contender_speedup_high": line.speedup.high,
            "against_bf16": line.against_bf16.middle,
            "against_bf16_low": line.against_bf16.low,
            "against_bf16_high": line.against_bf16.high,
            "gflops": line.measurement.gflops(line.race.workload),
            "share_of_limit": line.share(most),
            "format_error_db": line.race.accuracy.format_error_db,
            "kernel_error": line.race.accuracy.kernel_error,
            "variant": line.chosen.variant,
            "config": line.chosen.config.label,
        }
        for line in lines
    )


def _raced(race: Race) -> tuple[object, ...]:
    return race.kernels, race.default_values, race.tuned_values, race.baselines.keys()


def joined(races: Sequence[Race]) -> Race:
    """Races of the same candidates as one, with as many rounds of each: a pass in a bad minute
    takes more rounds, but has no more to say."""
    rounds = min(len(race.default.samples_ns) for race in races)

    def join(parts: Iterable[Measurement]) -> Measurement:
        kept = list(parts)
        samples = tuple(ns for part in kept for ns in part.samples_ns[:rounds])
        return kept[-1].model_copy(update={"samples_ns": samples})

    return races[-1].model_copy(update={
        "default": join(race.default for race in races),
        "tuned": join(race.tuned for race in races),
        "baselines": {
            name: join(race.baselines[name] for race in races) for name in races[-1].baselines
        },
    })  # fmt: skip


def _order(line: Line) -> tuple[str, tuple[str, tuple[int, ...]], str]:
    return line.race.device.slug, line.race.workload.place, line.race.recipe
