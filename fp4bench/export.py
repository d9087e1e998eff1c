"""From races to the table that training code loads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter

import fp4bench
from fp4bench.errors import BenchError
from fp4bench.evidence import Evidence
from fp4bench.summary import Line, newest
from fp4bench.trials import PassedTrial, Policy
from fp4kernels.attention.plans import AttentionKey, AttentionPlan, Bucket
from fp4kernels.attention.workload import AttentionWorkload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.layouts import Layout, held_bytes
from fp4kernels.recipes import recipe
from fp4kernels.tables import Plan, Problem, Table
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload


def make_table(evidence: Evidence, sources: Sequence[str]) -> Table:
    """One plan per (N, K, recipe) over the tuned values of M, and of attention per heads and recipe
    over batch and keys; a tie pins the default's values.

    Of several toolchains, the last recorded race's counts; of its policies, the last with a cold
    cache where there is one, since weights come from memory in use. Raises BenchError if there is
    no race, or if the races come from several devices.
    """
    lines = newest(evidence.races)
    if not lines:
        raise BenchError("a table needs at least one race, but the results hold none; run tune")
    slugs = sorted({line.race.device.slug for line in lines})
    if len(slugs) > 1:
        raise BenchError(
            f"a table is made on one device, but the results hold {', '.join(slugs)}; "
            "give the folder of one device, or one file"
        )
    device, toolchain, policy = _setting(lines)
    by_problem: dict[Problem, dict[int, Line]] = defaultdict(dict)
    attention: dict[AttentionKey, dict[tuple[int, int], Line]] = defaultdict(dict)
    for line in lines:  # in order: a later race of the same M replaces an earlier one
        race, work = line.race, line.race.workload
        if (race.device, race.toolchain, race.policy) != (device, toolchain, policy):
            continue
        if isinstance(work, AttentionWorkload):
            key = AttentionKey(
                work.phase.value, work.heads, work.kv_heads, work.head_dim, race.recipe
            )
            attention[key][work.batch, work.keys] = line
        else:
            by_problem["gemm", work.n, work.k, race.recipe][work.m] = line
    trials = [t for t in evidence.trials if isinstance(t, PassedTrial)]
    used = [line for by_m in by_problem.values() for line in by_m.values()]
    used += [line for by_size in attention.values() for line in by_size.values()]
    provenance = {
        "fp4bench": fp4bench.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "policy": policy.model_dump(),
        "sources": list(sources),
        "evidence": [_evidence(line) for line in used],
    }
    plans = {problem: _plan(by_m, trials) for problem, by_m in by_problem.items()}
    attended = {
        key: AttentionPlan(tuple(Bucket(*at, by_size[at].chosen) for at in sorted(by_size)))
        for key, by_size in attention.items()
    }
    return Table(device, toolchain, plans, provenance, attended)


def _setting(lines: Sequence[Line]) -> tuple[Device, Toolchain, Policy]:
    last = lines[-1].race
    alike = [
        x.race for x in lines if (x.race.device, x.race.toolchain) == (last.device, last.toolchain)
    ]
    cold = [race for race in alike if race.policy.cache == "cold"]
    return last.device, last.toolchain, (cold or alike)[-1].policy


def _plan(by_m: Mapping[int, Line], trials: Sequence[PassedTrial]) -> Plan:
    """The layout with the least time over all M, since a weight is held once; in it, the best."""
    options = {m: _by_layout(line, trials) for m, line in by_m.items()}
    shared = set.intersection(*(set(option) for option in options.values()))
    if not shared:
        raise BenchError("no layout has a passed candidate for every M; tune them in one run")
    layout = min(shared, key=lambda held: sum(option[held][0] for option in options.values()))
    return Plan(tuple((m, options[m][layout][1]) for m in sorted(options)))


def _by_layout(line: Line, trials: Sequence[PassedTrial]) -> dict[Layout, tuple[float, Candidate]]:
    """Layout → (time, candidate): the race's choice in its own layout, the best trial elsewhere."""
    best: dict[Layout, tuple[float, Candidate]] = {}
    for trial in trials:
        candidate, time = trial.candidate, trial.measurement.median_ns
        if trial.beside_default is not None:
            time = trial.beside_default * line.race.default.median_ns
        alike = (trial.identity, trial.kernels) == (line.race.identity, line.race.kernels)
        if alike and candidate.recipe == line.race.recipe:
            best[candidate.layout] = min(
                (time, candidate), best.get(candidate.layout, (time, candidate)), key=itemgetter(0)
            )
    best[line.chosen.layout] = (line.measurement.median_ns, line.chosen)
    return best


def _evidence(line: Line) -> dict[str, object]:
    """What the table's choice for one workload rests on."""
    work, chosen = line.race.workload, line.chosen
    held = {}
    if isinstance(work, GemmWorkload):
        fmt = recipe(line.race.recipe).format
        held["held_bytes"] = held_bytes(work.n, work.k, fmt, chosen.layout)
    return {
        "workload": work.key,
        "recipe": line.race.recipe,
        "weights": line.race.weights,
        "verdict": line.speedup.verdict,
        "default_us": round(line.race.default.median_ns / 1e3, 3),
        "chosen_us": round(line.measurement.median_ns / 1e3, 3),
        "against_bf16": round(line.against_bf16.middle, 3),
        "format_error_db": round(line.race.accuracy.format_error_db, 2),
        **held,
        "time": line.race.time.isoformat(timespec="seconds"),
    }
