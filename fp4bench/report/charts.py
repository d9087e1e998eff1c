"""Figures of the report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from fp4bench.report.plotting import Look, hover, layout, log_step, marks, text
from fp4bench.summary import Line
from fp4bench.trials import FailedTrial, Measurement, PassedTrial

_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]


def recipe_of(trial: PassedTrial | FailedTrial) -> str:
    """As recorded: the trial may name what this version does not know."""
    return str(trial.candidate_values.get("recipe", "unknown"))


def tradeoff(
    lines: Sequence[Line], trials: Iterable[PassedTrial | FailedTrial], look: Mapping[str, Look]
) -> go.Figure:
    """Throughput × format error, best at the top right; torch bf16 in a strip of its own."""
    passed = [trial for trial in trials if isinstance(trial, PassedTrial)]
    figure = go.Figure(layout=layout(strip="bf16"))
    for name, style in look.items():
        figure.add_trace(_backdrop(name, style, passed))
    for name, style in look.items():
        figure.add_trace(_chosen(name, style, [line for line in lines if line.race.recipe == name]))
    figure.add_trace(_baseline(lines))
    step = log_step([x for trace in figure.data for x in trace.x])
    figure.update_xaxes(title_text="throughput, GFLOP/s", type="log", dtick=step, tickformat="~s")
    figure.update_layout(
        yaxis={"title": {"text": "format error, dB"}, "autorange": "reversed", "nticks": 7}
    )
    return figure


def history(
    trials: Sequence[PassedTrial | FailedTrial],
    defaults: Sequence[Mapping[str, Any]],
    look: Mapping[str, Look],
) -> go.Figure:
    """Trials of one workload in order of recording, the best so far of each recipe as a line."""
    ordered = list(enumerate(trials, 1))
    passed = [(at, trial) for at, trial in ordered if isinstance(trial, PassedTrial)]
    failed = [(at, trial) for at, trial in ordered if isinstance(trial, FailedTrial)]
    figure = go.Figure(layout=layout(strip="failed" if failed else ""))
    for name, style in look.items():
        own = [(at, trial) for at, trial in passed if recipe_of(trial) == name]
        if own:
            figure.add_trace(_best_so_far(name, style, own, len(ordered)))
            figure.add_trace(_timed(name, style, own))
    marked = [(at, trial) for at, trial in passed if trial.candidate_values in defaults]
    figure.add_trace(
        marks(
            [(at, _us(trial.measurement)) for at, trial in marked],
            {"symbol": "circle-open", "size": 17, "color": "var(--ink)", "line": {"width": 1.5}},
            name="default",
        )
    )
    if failed:
        figure.add_trace(_crosses(failed))
    figure.update_xaxes(
        title_text="trial, in order of time",
        range=[0.3, len(ordered) + 0.7],
        tick0=0,
        dtick=next(step for step in _STEPS if step * 12 >= len(ordered)),
    )
    step = log_step([_us(trial.measurement) for _, trial in passed])
    figure.update_layout(
        yaxis={
            "title": {"text": "time, µs"}, "type": "log", "dtick": step, "tickformat": ",~r",
        }
    )  # fmt: skip
    return figure


def _backdrop(name: str, style: Look, passed: Iterable[PassedTrial]) -> go.Scatter:
    """Every passed trial of a recipe; what would fall on the same pixel is drawn once."""
    own = [trial for trial in passed if recipe_of(trial) == name]
    speeds = (float(f"{trial.measurement.gflops(trial.workload):.3g}") for trial in own)
    errors = (round(trial.accuracy.format_error_db, 2) for trial in own)
    return marks(
        sorted(set(zip(speeds, errors, strict=True))),
        {"color": style.colour, "symbol": style.symbol, "size": 4, "opacity": 0.3},
        legendgroup=text(name),
        showlegend=False,
    )


def _chosen(name: str, style: Look, lines: Sequence[Line]) -> go.Scatter:
    outline = {"width": 1, "color": "var(--paper)"}
    return marks(
        [
            (line.measurement.gflops(line.race.workload), line.race.accuracy.format_error_db)
            for line in lines
        ],
        {"color": style.colour, "symbol": style.symbol, "size": 11, "line": outline},
        [
            hover(
                f"{line.race.recipe}, {line.race.workload.label}",
                _throughput(line, line.measurement),
                f"format error {line.race.accuracy.format_error_db:.2f} dB".replace("-", "−"),
                f"{line.speedup_text} against the default",
                f"{line.chosen.variant} {line.chosen.config.label}",
            )
            for line in lines
        ],
        name=text(name),
        legendgroup=text(name),
    )


def _baseline(lines: Sequence[Line]) -> go.Scatter:
    return marks(
        [(line.race.baseline.gflops(line.race.workload), 0.0) for line in lines],
        {"symbol": "line-ns", "size": 14, "line": {"width": 1.5, "color": "var(--ink)"}},
        [
            hover("torch bf16", line.race.workload.label, _throughput(line, line.race.baseline))
            for line in lines
        ],
        name="torch bf16",
        yaxis="y2",
    )


def _best_so_far(
    name: str, style: Look, own: Sequence[tuple[int, PassedTrial]], last: int
) -> go.Scatter:
    best = [_us(own[0][1].measurement)]
    for _, trial in own[1:]:
        best.append(min(best[-1], _us(trial.measurement)))
    return go.Scatter(
        x=[*(at for at, _ in own), last + 0.7],
        y=[*best, best[-1]],
        legendgroup=text(name),
        showlegend=False,
        mode="lines",
        hoverinfo="skip",
        line={"shape": "hv", "color": style.colour, "width": 1.5},
    )


def _timed(name: str, style: Look, own: Sequence[tuple[int, PassedTrial]]) -> go.Scatter:
    return marks(
        [(at, _us(trial.measurement)) for at, trial in own],
        {"color": style.colour, "symbol": style.symbol, "size": 7, "opacity": 0.75},
        [
            hover(
                f"trial {at}: {name}",
                f"{_us(trial.measurement):,.1f} µs",
                _configuration(trial.candidate_values),
            )
            for at, trial in own
        ],
        name=text(name),
        legendgroup=text(name),
    )


def _crosses(failed: Sequence[tuple[int, FailedTrial]]) -> go.Scatter:
    return marks(
        [(at, 0.0) for at, _ in failed],
        {"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": "var(--loss)"}},
        [
            hover(
                f"trial {at}: {recipe_of(trial)}, {trial.status}",
                textwrap.shorten(trial.reason, 300),
                _configuration(trial.candidate_values),
            )
            for at, trial in failed
        ],
        name="failed",
        yaxis="y2",
    )


def _us(measurement: Measurement) -> float:
    return measurement.median_ns / 1e3


def _throughput(line: Line, measurement: Measurement) -> str:
    return f"{measurement.gflops(line.race.workload):,.1f} GFLOP/s"


def _configuration(values: Mapping[str, Any]) -> str:
    config = values.get("config")
    fields = config.items() if isinstance(config, Mapping) else ()
    return " ".join([str(values.get("variant", "")), *(f"{name}={v}" for name, v in fields)])
