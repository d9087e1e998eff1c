"""What the charts of the report share. Colours are CSS variables: one figure, both themes."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")
_COLOURS = 6  # --series-0 to --series-5 in the style sheet
_HOVER_WIDTH = 44
_TRANSPARENT = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class Look:
    """How a recipe is drawn in every chart: by colour and by shape."""

    colour: str
    symbol: str


def looks(recipes: Iterable[str]) -> dict[str, Look]:
    return {
        name: Look(f"var(--series-{i % _COLOURS})", _SYMBOLS[i % len(_SYMBOLS)])
        for i, name in enumerate(sorted(set(recipes)))
    }


def marks(
    points: Sequence[tuple[float, float]],
    marker: Mapping[str, Any],
    texts: Sequence[str] = (),
    **more: Any,
) -> go.Scatter:
    """Points that show one of `texts` each under the pointer, or nothing."""
    shown = (
        {"customdata": texts, "hovertemplate": "%{customdata}<extra></extra>"}
        if texts
        else {"hoverinfo": "skip"}
    )
    x, y = [x for x, _ in points], [y for _, y in points]
    return go.Scatter(x=x, y=y, mode="markers", marker=marker, **shown, **more)


def log_step(values: Sequence[float]) -> str | int | None:
    """Labels at powers of ten, at 1, 2 and 5 of each, or as Plotly chooses for a narrow range."""
    span = max(values, default=1.0) / min(values, default=1.0)
    one_value = span == 1  # is shown between a tenth and ten times of it
    return 1 if span > 1000 else "D2" if span > 4 or one_value else None


def hover(*lines: str) -> str:
    wrapped = (part for line in lines for part in textwrap.wrap(line, _HOVER_WIDTH))
    return "<br>".join(text(part) for part in wrapped)


def text(raw: str) -> str:
    """Plotly reads a small subset of HTML in its labels."""
    return html.escape(raw, quote=False)


def layout(strip: str) -> dict[str, Any]:
    """One plot; with `strip`, a strip of that name above it on the same x axis."""
    grid = {
        "gridcolor": "var(--rule)", "linecolor": "var(--rule)", "zeroline": False,
        "automargin": True, "exponentformat": "none", "separatethousands": True,
        "title": {"font": {"color": "var(--muted)", "size": 13}, "standoff": 8},
    }  # fmt: skip
    named = {"tickvals": [0], "ticktext": [strip], "range": [-1, 1], "showgrid": False}
    return {
        "template": "none",
        "paper_bgcolor": _TRANSPARENT,
        "plot_bgcolor": _TRANSPARENT,
        "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
        "hoverlabel": {
            "align": "left", "bgcolor": "var(--paper)", "bordercolor": "var(--muted)",
            "font": {"color": "var(--ink)", "family": "var(--mono)", "size": 12},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 44},
        "xaxis": {**grid, "anchor": "y"},
        "yaxis": {**grid, "domain": [0, 0.86 if strip else 1]},
        "yaxis2": {**grid, **named, "domain": [0.9, 1], "fixedrange": True},
    }  # fmt: skip
