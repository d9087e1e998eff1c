"""The report: true to the rows, self-contained, safe against hostile text, drawn by a browser."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fp4bench import report
from fp4bench.errors import BenchError
from fp4bench.evidence import Damage, Evidence
from fp4bench.report.sections import arrange
from fp4bench.summary import summarize
from fp4bench.trials import (
    Accuracy,
    FailedTrial,
    Limits,
    Measurement,
    PassedTrial,
    Policy,
    Race,
    Status,
    Telemetry,
)
from fp4kernels.devices import Device, Toolchain
from fp4kernels.workloads import GemmWorkload

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror='alert(2)'> \"quoted\" <!-- & {{ 7*7 }}"
)
VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
LOADS = {"src", "href", "srcset", "action", "data", "poster", "formaction", "background"}
DEVICE = Device("cpu", "Test CPU", "x86_64-avx512vnni", 4, 32 << 20, 0, 16 << 30)
TOOLCHAIN = Toolchain("2.13.0", None, None, None, "c++", "c++ 12.2")
POLICY = Policy(launch="eager", cache="cold")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ACCURACY = Accuracy(kernel_error=0.5, format_error_db=-15.5)


def values(recipe: str = "mxfp4", mr: int = 8) -> dict[str, Any]:
    config = {"mr": mr, "rg": 4, "kc": 0, "mc": 128, "panels": 2, "prefetch": 0}
    return {"recipe": recipe, "variant": "cpp_w4a4", "layout": "panel16", "config": config}


def measured(ns: float, seed: int = 0) -> Measurement:
    noise = random.Random(seed)
    return Measurement(
        samples_ns=tuple(ns * noise.uniform(0.99, 1.01) for _ in range(15)),
        calls=4,
        warmup_calls=4,
        timer="perf_counter",
        policy=POLICY,
        telemetry=Telemetry(load_average=0.25),
    )


def common(m: int = 8, seconds: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "device": DEVICE,
        "toolchain": TOOLCHAIN,
        "policy": POLICY,
        "workload": GemmWorkload(m, 192, 576),
        "weights": "synthetic",
        "kernels": "0",
        "time": START + timedelta(seconds=seconds),
        **changed,
    }


def race(
    tuned: float = 60e3,
    baseline: float = 120e3,
    recipe: str = "mxfp4",
    default: float = 100e3,
    **row: Any,
) -> Race:
    return Race(
        **common(**row),
        recipe=recipe,
        default_values=values(recipe),
        tuned_values=values(recipe, mr=4),
        default=measured(default, 1),
        tuned=measured(tuned, 2),
        baselines={"torch_bf16": measured(baseline, 3)},
        accuracy=ACCURACY,
    )


def passed(ns: float, recipe: str = "mxfp4", mr: int = 8, **row: Any) -> PassedTrial:
    return PassedTrial(
        **common(**row),
        candidate_values=values(recipe, mr),
        accuracy=ACCURACY,
        measurement=measured(ns),
    )


def failed(reason: str, status: Any = Status.WRONG, **row: Any) -> FailedTrial:
    return FailedTrial(**common(**row), candidate_values=values(mr=2), status=status, reason=reason)


def evidence(*rows: PassedTrial | FailedTrial | Race) -> Evidence:
    return Evidence(rows, ())


def sample() -> Evidence:
    """Two recipes and three sizes: a win, ties, a loss to bf16, failures."""
    rows: list[PassedTrial | FailedTrial | Race] = []
    for m in (1, 8, 512):
        for recipe in ("mxfp4", "nvfp4"):
            rows += [
                passed(100e3, recipe, m=m, seconds=1),
                passed(80e3, recipe, mr=4, m=m, seconds=2),
                failed("element (3, 17) is too far off", m=m, seconds=3),
                race(60e3 if m == 8 else 100e3, 50e3, recipe, m=m, seconds=4),
            ]
    return evidence(*rows)


class Page(HTMLParser):
    """Elements, their texts by id, and cells of tables; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.visible = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if self.open and self.open[-1][1]:
            name = str(self.open[-1][1])
            self.texts[name] = self.texts.get(name, "") + data
        if not {"script", "style"} & set(tags):
            self.visible += data
            if {"td", "th"} & set(tags):
                self.rows[-1][-1] += data

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(found: Evidence) -> Page:
    return Page(report.render(found, "results/test"))


def test_verdict_and_table_say_what_the_summary_says() -> None:
    found = sample()
    page = page_of(found)
    words = " ".join(page.visible.split())
    lines = summarize(found.races)
    wins = [line.speedup.middle for line in lines if line.won]
    assert f"{math.prod(wins) ** (1 / 6):.2f}× the default" in words  # a tie counts as 1
    bf16 = math.prod(line.against_bf16.middle for line in lines) ** (1 / 6)
    assert f"{bf16:.2f}× torch bf16" in words
    assert "2 wins over the default in 6 races; slower than torch bf16 in 6" in words
    assert "format error −15.5 dB emulated" in words
    table = [row for row in page.rows if len(row) == 11][1:]
    assert len(table) == len(lines) == 6
    for row, line in zip(table, lines, strict=True):
        cells = [" ".join(cell.split()) for cell in row]
        assert cells[:2] == [line.race.workload.label, line.race.recipe]
        assert cells[2] == f"{line.race.default.median_ns / 1e3:,.1f}"
        assert cells[3] == f"{line.measurement.median_ns / 1e3:,.1f}"
        assert cells[4].startswith(f"{line.speedup.middle:.2f}×" if line.won else "tie")
        assert cells[5] == f"▼ {line.against_bf16.middle:.2f}× slower"
        assert cells[7] == ""  # no limits were measured
        assert cells[8] == "−15.50"
        assert cells[9] == f"cpp_w4a4 {line.chosen.config.label}"


def test_shares_of_measured_limits_are_in_the_table() -> None:
    limits = Limits(device=DEVICE, toolchain=TOOLCHAIN, memory_read=10, int8=1000)
    one = race()
    page = page_of(Evidence((limits, one), ()))
    (line,) = summarize([one])
    share = line.share(limits)
    assert share is not None
    assert [row[7] for row in page.rows if len(row) == 11][1] == f"{100 * share:.0f}%"
    assert "memory read, GB/s 10; int8, GFLOP/s 1,000 (measured)" in page.visible


def test_a_ratio_of_at_least_one_is_not_marked_as_a_loss() -> None:
    row = page_of(evidence(race(baseline=120e3 * 20_000))).rows[1]
    assert "▼" not in row[5]
    assert row[5].startswith("39,")


def test_only_what_the_command_line_can_say_has_a_command() -> None:
    page = page_of(
        evidence(
            race(), race(m=16, weights="model.layers.0.q_proj.weight"),
            race(m=32, workload=GemmWorkload(32, 192, 576, role="dgrad")),
        )
    )  # fmt: skip
    commands = [b["data-copy"] for b in page.tags("button") if "data-copy" in b]
    assert commands == ["fp4bench tune --shape 8x192x576 --recipe mxfp4"]
    assert "dgrad, bfloat16 to bfloat16" in page.visible
    assert "synthetic Gaussian, not from a model" in page.visible


def test_devices_and_policies_are_never_mixed() -> None:
    warm = Policy(launch="eager", cache="warm")
    other = replace(DEVICE, name="Other CPU")
    found = evidence(race(), race(policy=warm), race(device=other))
    assert len(arrange(found)[0]) == 3
    assert len(page_of(found).tags("section")) == 3


def test_what_is_left_out_is_said() -> None:
    rows = (race(), passed(1e5, policy=Policy(launch="graph", cache="warm")))
    words = page_of(Evidence(rows, (Damage(Path("/secret/a.jsonl"), 7, "bad"),))).visible
    assert "a.jsonl, line 7, was skipped: bad" in words
    assert "/secret" not in words
    assert "1 trials are only in the raw rows" in words


def test_failures_are_counted_with_the_most_frequent_reason() -> None:
    found = evidence(
        race(), failed("rare", seconds=1), failed("often", seconds=2), failed("often", seconds=3),
        failed("x" * 9000, Status.TIMEOUT),
    )  # fmt: skip
    statuses = {status: (count, reason) for status, count, reason in arrange(found)[0][0].statuses}
    assert statuses["WRONG"] == (3, "2 of 3: often")
    assert statuses["TIMEOUT"][0] == 1
    assert len(statuses["TIMEOUT"][1]) <= 400


def test_nothing_is_loaded_from_outside() -> None:
    page = page_of(sample())
    for tag, attributes in page.elements:
        assert not LOADS & set(attributes), (tag, attributes)
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
    styles = " ".join(re.findall(r"<style>(.*?)</style>", report.render(sample(), "r"), re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(m for m in page.tags("meta") if m.get("http-equiv"))
    assert "default-src 'none'" in str(policy["content"])


def hostile() -> Evidence:
    candidate = {"recipe": EVIL, "variant": EVIL, "layout": EVIL, "config": {EVIL: EVIL}}
    device, weights = replace(DEVICE, name=EVIL), EVIL
    toolchain = replace(TOOLCHAIN, compiler_version=EVIL)
    setting = {"device": device, "weights": weights, "toolchain": toolchain}
    odd = failed(EVIL, **setting).model_copy(update={"candidate_values": candidate})
    slow = passed(1e5, **setting, seconds=1).model_copy(update={"candidate_values": candidate})
    return evidence(race(**setting), odd, slow)


def test_hostile_text_is_escaped_everywhere() -> None:
    found = hostile()
    text = report.render(found, EVIL)
    page = Page(text)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert not page.tags("img")
    kinds = [script.get("type") for script in page.tags("script")]
    assert kinds == [None, "application/json", "application/json", None, None]
    rows = json.loads(page.texts["rows"])
    assert rows == [row.model_dump(mode="json") for row in found.rows]
    assert EVIL in page.visible
    assert page.texts["rows"].count("<") == page.texts["figures"].count("<") == 0
    for label in labels(json.loads(page.texts["figures"])):
        assert "<" not in label.replace("<br>", "")


def labels(figures: dict[str, Any]) -> Iterator[str]:
    for figure in figures.values():
        for trace in figure["data"]:
            yield trace.get("name", "")
            yield from trace.get("customdata", ())


def test_embedded_rows_are_the_rows() -> None:
    found = sample()
    rows = json.loads(page_of(found).texts["rows"])
    assert [json.dumps(row) for row in rows] == [
        json.dumps(row.model_dump(mode="json")) for row in found.rows
    ]


def test_every_workload_has_its_history_and_every_recipe_a_shape_of_its_own() -> None:
    figures = json.loads(page_of(sample()).texts["figures"])
    assert sorted(figures) == ["history-0-0", "history-0-1", "history-0-2", "tradeoff-0"]
    traces = {t["name"]: t for t in figures["tradeoff-0"]["data"] if "name" in t}
    assert set(traces) == {"mxfp4", "nvfp4", "torch bf16"}
    looks = {(traces[name]["marker"]["color"], traces[name]["marker"]["symbol"])
             for name in ("mxfp4", "nvfp4")}  # fmt: skip
    assert len({colour for colour, _ in looks}) == len({symbol for _, symbol in looks}) == 2
    history = {t["name"]: t for t in figures["history-0-0"]["data"] if "name" in t}
    assert set(history) == {"mxfp4", "nvfp4", "default", "failed"}
    assert len(history["failed"]["x"]) == len(history["default"]["x"]) == 2
    best = next(t for t in figures["history-0-0"]["data"] if t["mode"] == "lines")
    assert best["y"] == sorted(best["y"], reverse=True)


def test_the_page_depends_on_the_rows_alone() -> None:
    assert report.render(sample(), "results") == report.render(sample(), "results")


@pytest.mark.parametrize("found", [evidence(), evidence(passed(1e5))])
def test_without_a_race_there_is_no_report(found: Evidence, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="at least one race, but results/test holds none"):
        report.write(tmp_path / "report.html", found, "results/test")
    assert list(tmp_path.iterdir()) == []


def test_write_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    report.write(path, sample(), "results")
    report.write(path, sample(), "results")
    assert path.read_text(encoding="utf-8") == report.render(sample(), "results")
    assert list(path.parent.iterdir()) == [path]


def test_an_unwritable_path_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "report.html", tmp_path / "folder"):
        with pytest.raises(BenchError, match=r"^cannot write the report to [^\n]+$"):
            report.write(path, sample(), "results")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def in_browser(path: Path) -> str:
    """What the page has become once its scripts have run."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs the program chromium; none is on the PATH")
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    root = re.search(r"<html[^>]*>", dom)
    assert root
    assert "data-error" not in root[0], html.unescape(root[0])
    return dom


@pytest.mark.parametrize("found", [sample(), hostile()], ids=["plain", "hostile"])
def test_a_browser_draws_it(found: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(path, found, "results/test")
    dom = in_browser(path)
    charts = dom.split('data-figure="')[1:]
    assert len(charts) == 2
    for chart in charts:
        assert re.search(r'<path class="point[ "]', chart), "no points were drawn"
    colours = re.findall(r"--series-0: (#\w+)", dom)
    drawn = {f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:], 16)})" for c in colours}
    assert any(colour in dom for colour in drawn), "the theme's colours did not reach the charts"
    assert re.search(r"\d of \d rows", dom), "the filters did not start"


def test_a_browser_sorts_filters_and_swaps(tmp_path: Path) -> None:
    clicks = """<script>
    const sort = document.querySelectorAll("thead button")[2];  // default, µs
    sort.click(); sort.click();
    const choose = (selector, value) => {
      const select = document.querySelector(selector);
      select.value = value;
      select.dispatchEvent(new Event("change"));
    };
    choose("[data-filter=recipe]", "nvfp4");
    choose("[data-selects]", "history-0-2");
    const shown = [...document.querySelectorAll("#results-0 tbody tr:not([hidden])")];
    document.body.dataset.shown = shown.map((row) => row.cells[1].textContent).join();
    document.body.dataset.order = shown.map((row) => row.cells[2].textContent).join(";");
    </script></body>"""
    races = [
        race(recipe=r, m=m, default=us * 1e3)
        for r in ("mxfp4", "nvfp4") for m, us in ((1, 9), (8, 1000), (512, 20))
    ]  # fmt: skip
    trials = [passed(1e5, m=m, seconds=m) for m in (1, 8, 512)]
    path = tmp_path / "report.html"
    text = report.render(evidence(*races, *trials), "results/test")
    path.write_text(text.replace("</body>", clicks), encoding="utf-8")
    dom = in_browser(path)
    assert 'data-shown="nvfp4,nvfp4,nvfp4"' in dom
    order = re.search(r'data-order="([^"]*)"', dom)
    assert order
    assert [round(float(us.replace(",", "")), -1) for us in order[1].split(";")] == [1000, 20, 10]
    assert "3 of 6 rows" in dom
    assert 'aria-sort="descending"' in dom
    assert 'data-figure="history-0-2"' in dom
