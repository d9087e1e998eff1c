"""Commands that read recorded rows: `report`, `export`, `merge` and `show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fp4bench import evidence, listing, present
from fp4bench import export as export_module
from fp4bench.cli.options import JsonOption, RecipeOption, ResultsArgument, ShapeOption, one_of
from fp4bench.cli.output import print_json, save, say, stdout, warn_of
from fp4bench.errors import BenchError, UsageError
from fp4bench.listing import Filters
from fp4bench.trials import AnyRow, Status, to_line
from fp4bench.workloads import from_shapes

SHOWN = 100  # rows of a table without --limit
SizeOption = Annotated[int | None, typer.Option(min=1, help="only this size")]


def report(
    path: ResultsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="the HTML file")] = Path(
        "reports/report.html"
    ),
) -> None:
    """Render results as one HTML file that needs no network."""
    from fp4bench import report as report_module  # its libraries take half a second to import

    found = evidence.read(path)
    warn_of(found)
    report_module.write(output, found, str(path))
    print(output)


def export(
    path: ResultsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="the table")] = Path("table.json"),
) -> None:
    """Write the table that training code loads."""
    found = evidence.read(path)
    warn_of(found)
    save(export_module.make_table(found, [path.name]), output)
    print(output)


def merge(
    sources: Annotated[list[Path], typer.Argument(help="results files or folders, oldest first")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a .jsonl or .jsonl.gz file")],
    force: Annotated[bool, typer.Option("--force", help="replace the file if it exists")] = False,
) -> None:
    """Join results into one file of the current schema, in the order given, without duplicates."""
    if not output.name.endswith(evidence.SUFFIXES):
        raise UsageError(f"-o must end in {' or '.join(evidence.SUFFIXES)}, but got {output}")
    if output.exists() and not force:
        raise UsageError(f"merge makes a new file, but {output} exists; pass --force to replace it")
    rows: dict[str, AnyRow] = {}
    read = damaged = 0
    for source in sources:
        found = evidence.read(source)
        warn_of(found)
        read, damaged = read + len(found.rows), damaged + len(found.damage)
        for row in found.rows:
            rows.setdefault(to_line(row), row)
    if not rows:
        raise BenchError(f"merge needs at least one row, but {len(sources)} sources hold none")
    evidence.write(output, rows.values())
    say(f"{len(rows)} rows of {len(sources)} sources; left out: "
        f"{read - len(rows)} duplicates, {damaged} damaged lines")  # fmt: skip
    print(output)


def show(
    path: ResultsArgument,
    kind: Annotated[str | None, typer.Option(help="trial, race or accuracy")] = None,
    status: Annotated[list[str] | None, typer.Option(help="such as OK or TIMEOUT")] = None,
    recipe: RecipeOption = None,
    variant: Annotated[list[str] | None, typer.Option(help="a kernel's name")] = None,
    shape: ShapeOption = None,
    m: SizeOption = None,
    n: SizeOption = None,
    k: SizeOption = None,
    sort: Annotated[str | None, typer.Option(help="a column of results/README.md")] = None,
    descending: Annotated[bool, typer.Option("--descending/--ascending")] = False,
    limit: Annotated[
        int | None, typer.Option(min=0, help=f"rows; 0 for all; default: {SHOWN}, JSON all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List recorded trials, races and accuracies."""
    if descending and sort is None:
        raise UsageError("--descending orders by --sort COLUMN, but got no --sort")
    filters = _filters(kind, status, {"recipe": recipe, "variant": variant}, shape,
                       {"m": m, "n": n, "k": k})  # fmt: skip
    found = evidence.read(path)
    warn_of(found)
    data = evidence.frame(found)
    picked = filters.pick(data)
    if sort is not None:
        picked = listing.ordered(picked, sort, descending)
    if picked.empty:
        say(
            filters.hint(data)
            if len(data)
            else f"{path} holds no trial, race or accuracy; run tune"
        )
    most = limit if limit is not None else 0 if as_json else SHOWN
    head = picked.head(most) if most else picked
    if as_json:
        text = head.to_json(
            orient="records", date_format="iso", date_unit="us", double_precision=15
        )
        print_json({"total": len(picked), "rows": json.loads(text)})
        return
    if len(head):
        stdout.print(present.listing_table(head, stdout.width, sort))
    if len(head) < len(picked):
        say(f"{len(head)} of {len(picked)} rows; --limit 0 shows all")


def _filters(
    kind: str | None,
    status: list[str] | None,
    names: dict[str, list[str] | None],
    shape: list[str] | None,
    sizes: dict[str, int | None],
) -> Filters:
    wanted: dict[str, list[Any]] = {name: values for name, values in names.items() if values}
    if kind is not None:
        wanted["kind"] = [one_of("kind", kind, ("trial", "race", "accuracy"))]
    if status:
        known = (*(s.value for s in Status), listing.ABSENT)
        wanted["status"] = [one_of("status", value.upper(), known) for value in status]
    if shape:
        wanted["shape"] = [problem.workload.label for problem in from_shapes(shape)]
    return Filters({**wanted, **{name: [v] for name, v in sizes.items() if v is not None}})
