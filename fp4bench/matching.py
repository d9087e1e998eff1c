"""Which races of two runs speak of the same thing, and what keeps the others apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fp4bench.evidence import Evidence
from fp4bench.summary import Line, joined, passes
from fp4bench.trials import Policy, Race
from fp4kernels.devices import Toolchain

Key = tuple[object, ...]
# how much less alike two races are for a difference: the nearest is named
_APART = {"workload": 16, "recipe": 8, "device": 4, "policy": 2, "weights": 1, "toolchain": 1}


@dataclass(frozen=True)
class Match:
    """The races of one thing in A and B, each in one or more passes; the lines pool the samples."""

    a: Line
    b: Line
    a_passes: Sequence[Race]
    b_passes: Sequence[Race]


@dataclass(frozen=True)
class Incomparable:
    """A race of `side` without its like on the other."""

    line: Line
    side: str
    reason: str

    def __str__(self) -> str:
        race = self.line.race
        return f"{race.workload.label} {race.recipe} of {self.side}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        race = self.line.race
        return {"workload": race.workload.key, "recipe": race.recipe, "device": race.device.slug,
                "policy": race.policy.model_dump(), "side": self.side, "reason": self.reason}  # fmt: skip


def grouped(found: Iterable[Incomparable]) -> list[str]:
    """One line a reason, with what it holds for."""
    races: dict[tuple[str, str], list[str]] = {}
    for one in found:
        race = one.line.race
        label = f"{race.workload.label} {race.recipe}"
        races.setdefault((one.side, one.reason), []).append(label)
    return [
        f"{len(labels)} of {side}: {reason} ({', '.join(labels[:3])}{', …' * (len(labels) > 3)})"
        for (side, reason), labels in races.items()
    ]


def match(a: Evidence, b: Evidence) -> tuple[list[Match], list[Incomparable]]:
    """Races of the same device, policy, workload, weights and recipe, by one toolchain."""
    ours, theirs = (_by_key(passes(found.races)) for found in (a, b))
    matches: list[Match] = []
    alone: list[Incomparable] = []
    named: set[Key] = set()
    for key, lines in ours.items():
        shared = [made for made in lines if made in theirs.get(key, {})]
        if shared:
            mine, other = lines[shared[-1]], theirs[key][shared[-1]]
            matches.append(Match(Line(joined(mine)), Line(joined(other)), mine, other))
            continue
        line = _last(lines)
        reason, nearest = _why(line, (_last(found) for found in theirs.values()), "B")
        alone.append(Incomparable(line, "A", reason))
        named.add(_key(nearest) if nearest else ())
    for key in theirs.keys() - ours.keys() - named:
        line = _last(theirs[key])
        reason, _ = _why(line, (_last(found) for found in ours.values()), "A")
        alone.append(Incomparable(line, "B", reason))
    return matches, sorted(alone, key=str)


def _by_key(groups: Iterable[Sequence[Race]]) -> dict[Key, dict[Toolchain, Sequence[Race]]]:
    found: dict[Key, dict[Toolchain, Sequence[Race]]] = {}
    for races in groups:
        found.setdefault(_key(Line(races[-1])), {})[races[-1].toolchain] = races
    return found


def _last(groups: Mapping[Toolchain, Sequence[Race]]) -> Line:
    return Line(list(groups.values())[-1][-1])


def _key(line: Line) -> Key:
    return tuple(value for name, value in _parts(line).items() if name != "toolchain")


def _parts(line: Line) -> dict[str, Any]:
    """What has to agree. A device's memory is left out: it differs from one boot to the next."""
    race = line.race
    device = race.device
    return {
        "workload": race.workload, "recipe": race.recipe, "policy": race.policy,
        "device": (device.kind, device.name, device.arch, device.cores, device.cache_bytes),
        "weights": race.weights, "toolchain": race.toolchain,
    }  # fmt: skip


def _why(line: Line, others: Iterable[Line], side: str) -> tuple[str, Line | None]:
    """What differs from the nearest race of the other side, which is given too."""
    mine = _parts(line)
    differing = [
        ([name for name, value in _parts(other).items() if mine[name] != value], other)
        for other in others
    ]
    if not differing:
        return f"{side} holds no race", None
    names, nearest = min(differing, key=lambda found: sum(_APART[name] for name in found[0]))
    for name in ("workload", "recipe"):
        if name in names:
            return f"{name}: {side} has none such", None
    there = _parts(nearest)
    return "; ".join(f"{n}: {_differs(mine[n], there[n], side)}" for n in names), nearest


def _differs(mine: object, theirs: object, side: str) -> str:
    if isinstance(mine, Toolchain) and isinstance(theirs, Toolchain):
        pairs = zip(asdict(mine).items(), asdict(theirs).values(), strict=True)
        return ", ".join(f"{n} {x} here, {y} in {side}" for (n, x), y in pairs if x != y)
    return f"{_text(mine)} here, {_text(theirs)} in {side}"


def _text(value: object) -> str:
    if isinstance(value, Policy):
        return f"{value.launch} launch with {value.cache} cache"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
