"""One self-contained, offline HTML page from the recorded rows alone."""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

import fp4bench
from fp4bench import racing
from fp4bench.errors import BenchError
from fp4bench.evidence import Evidence
from fp4bench.report import charts, plotting
from fp4bench.report.sections import Section, arrange

_TEMPLATE = "page.html.jinja"


def render(evidence: Evidence, source: str) -> str:
    """The page; `source` says where the rows were read from. BenchError where there is no race."""
    sections, left_out = arrange(evidence)
    if not sections:
        reasons = "; ".join(left_out[:1]) or "run tune"
        raise BenchError(f"a report needs at least one race, but {source} holds none; {reasons}")
    rows = ",\n".join(row.model_dump_json() for row in evidence.rows)
    return _template().render(
        sections=sections,
        left_out=left_out,
        source=source,
        version=fp4bench.__version__,
        tie=racing.TIE,
        row_count=len(evidence.rows),
        plotly=get_plotlyjs(),
        figures=_embedded(json.dumps(_figures(sections))),
        rows=_embedded(f"[{rows}]"),
    )


def write(path: Path, evidence: Evidence, source: str) -> None:
    """Render to `path`, which is replaced whole or not at all."""
    page = render(evidence, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                file.write(page)
                file.close()
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise BenchError(
            f"cannot write the report to {path}: {error.strerror}; what was measured is recorded: "
            "mend that, then run fp4bench report"
        ) from error


def _figures(sections: list[Section]) -> dict[str, Any]:
    """By the name that the page asks for: tradeoff-SECTION and history-SECTION-WORKLOAD."""
    raced = [name for section in sections for name in section.recipes]
    tried = [charts.recipe_of(trial) for section in sections for trial in section.trials]
    look = plotting.looks([*raced, *tried])
    figures = {}
    for i, section in enumerate(sections):
        lines = [entry.line for entry in section.entries]
        figures[f"tradeoff-{i}"] = charts.tradeoff(lines, section.trials, look)
        for j, search in enumerate(section.histories):
            figures[f"history-{i}-{j}"] = charts.history(search.trials, search.defaults, look)
    return {name: json.loads(figure.to_json()) for name, figure in figures.items()}


def _embedded(text: str) -> str:
    """JSON that is safe inside a script element: < occurs in its strings alone."""
    return text.replace("<", "\\u003c")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = _fixed
    text = resources.files("fp4bench.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text)


def _fixed(value: float, digits: int) -> str:
    """With thousands separators and a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", "−")
