"""The record: what is written is read back, and damage costs only the damaged line."""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fp4bench import evidence, listing
from fp4bench.errors import BenchError, UsageError
from fp4bench.evidence import DamageWarning, Evidence, Recorder
from fp4bench.export import make_table
from fp4bench.listing import Filters
from fp4bench.summary import summarize
from fp4bench.trials import (
    Accuracy,
    AttentionErrors,
    FailedTrial,
    FormatAccuracy,
    Limits,
    Measurement,
    PassedTrial,
    Policy,
    Race,
    Status,
    Telemetry,
    to_line,
)
from fp4kernels.attention.workload import AttentionWorkload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload
from samples import (
    DEVICE,
    TOOLCHAIN,
    WHEN,
    candidate,
    failed_trial,
    measurement,
    passed_trial,
    race,
)

README = Path(__file__).parents[1] / "results" / "README.md"
LINE = to_line(race()).encode()


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    limits = Limits(device=DEVICE, toolchain=TOOLCHAIN, time=WHEN, memory_read=20.5)
    rows = (passed_trial(), failed_trial(Status.TIMEOUT, "no <b>answer</b>\n"), race(), limits)
    with Recorder(tmp_path) as recorder:
        for row in rows:
            recorder.append(row)
    found = evidence.read(tmp_path)
    assert found.rows == rows
    assert found.damage == ()
    assert [*found.limits] == [limits]
    assert found.rows[0].candidate == passed_trial().candidate  # type: ignore[union-attr]


def test_a_file_cut_at_any_byte_of_its_last_line_loses_that_line_alone(tmp_path: Path) -> None:
    first, last = to_line(passed_trial()).encode(), LINE
    file = tmp_path / "cut.jsonl"
    for cut in range(len(last) + 1):
        file.write_bytes(first + last[:cut])
        found = evidence.read(file)
        whole = cut >= len(last) - 1  # all but the line's end
        assert found.rows == ((passed_trial(), race()) if whole else (passed_trial(),))
        assert [damage.line for damage in found.damage] == ([2] if cut > 0 and not whole else [])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file are short, then fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_lines_alone(tmp_path: Path) -> None:
    rows = [race(m=m) for m in range(1, 100)]
    with Recorder(tmp_path) as recorder:
        for row in rows:
            recorder.append(row)
        size = recorder.path.stat().st_size
        with files_of_at_most(size + 100), pytest.raises(BenchError) as raised:
            recorder.append(race())
        assert re.search(r"whole or not at all, but .* took 100 of \d+ bytes \(.*\); make room",
                         str(raised.value))  # fmt: skip
        assert recorder.path.stat().st_size == size
        recorder.append(race(m=500))
    assert evidence.read(tmp_path) == Evidence((*rows, race(m=500)), ())


def test_an_interrupt_within_a_write_leaves_whole_lines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def interrupted(file: int, data: bytes) -> int:
        write(file, data[:50])
        raise KeyboardInterrupt

    with Recorder(tmp_path) as recorder:
        recorder.append(passed_trial())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "write", interrupted)
            recorder.append(race())
        recorder.append(race())
    assert evidence.read(tmp_path) == Evidence((passed_trial(), race()), ())


def test_damage_names_file_line_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "rubbish.jsonl"
    newer = LINE.replace(b'"schema_version":4', b'"schema_version":99')
    file.write_bytes(b"\xff\x00rubbish\n" + LINE + newer)
    found = evidence.read(file)
    assert found.rows == (race(),)
    assert [damage.line for damage in found.damage] == [1, 3]
    assert str(found.damage[1]).startswith(f"{file}:3: skipped: ")
    assert "schema 99" in found.damage[1].reason


DAMAGED = {
    "rubbish": os.urandom(300).replace(b"\n", b""),
    "NUL": b"\0" * 5000,
    "invalid UTF-8": LINE.replace(b"synthetic", b"\xff\xfe").strip(),
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "twice": LINE.strip()[:-1] + b',"kind":"race"}',
    "number": LINE.replace(b'"calls":1', b'"calls":1e999').strip(),
    "integer": LINE.replace(b'"calls":1', b'"calls":' + b"9" * 5000).strip(),
    "newer": LINE.replace(b'"schema_version":4', b'"schema_version":5').strip(),
    "unknown kernel": LINE.replace(b"cpp_w4a4", b"cpp_w9a9").strip(),
    "more fields": LINE.replace(b'"layout":', b'"more":1,"layout":').strip(),
    "no zone": LINE.replace(b"05Z", b"05").strip(),
    "first hour": LINE.replace(b"2026-01-02T03:04:05Z", b"0001-01-01T00:00:00+23:00").strip(),
    "surrogate": LINE.replace(b"synthetic", b"\\ud800").strip(),
    "escapes": b'{"schema_version":"\x1b[31m"}',
    "list": b"[1, 2]",
    "text": b'"race"',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_named_and_its_neighbours_are_read(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(LINE + line + b"\n" + LINE)
    found = evidence.read(file)
    assert found.rows == (race(), race())
    (damage,) = found.damage
    assert damage.line == 2
    assert damage.reason.isprintable()
    assert 0 < len(damage.reason) <= 300


def test_a_huge_line_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_LINE", 4096)
    file = tmp_path / "r.jsonl"
    file.write_bytes(LINE + b"x" * 20_000 + b"\n" + LINE)
    found = evidence.read(file)
    assert found.rows == (race(), race())
    assert [(d.line, d.reason[:12]) for d in found.damage] == [(2, "a line holds")]


@pytest.mark.parametrize("inside", ["a\u2028b", "a\u0085b", "a\\u000ab", "a\x7fb"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, inside: str) -> None:
    text = LINE.decode().replace("synthetic", inside).replace("{", "{\r", 1)
    (tmp_path / "r.jsonl").write_bytes(text.encode() + LINE.replace(b"\n", b"\r\n"))
    found = evidence.read(tmp_path)
    assert (len(found.rows), found.damage) == (2, ())


def test_a_byte_order_mark_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE)
    assert evidence.read(tmp_path) == Evidence((race(),), ())


def test_odd_files_in_a_folder_are_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "e.jsonl").write_bytes(LINE)
    found = evidence.read(tmp_path)
    assert found.rows == (race(),)
    assert [damage.file.name[0] for damage in found.damage] == ["a", "b", "c", "d"]
    assert str(found.damage[0]) == f"{tmp_path / 'a.jsonl'}: skipped: not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / "a.jsonl").chmod(0)
    assert len(evidence.read(tmp_path).damage) == 1
    with pytest.raises(BenchError, match="cannot read results from .*: Permission denied"):
        evidence.read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["none", "x" * 5000, "nul\0", "file.jsonl/below"])
def test_results_that_cannot_be_read_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.jsonl").write_bytes(LINE)
    with pytest.raises(BenchError, match="results"):
        evidence.read(tmp_path / name)


def test_gzipped_results_are_read_between_the_others(tmp_path: Path) -> None:
    for name, m in {"1": 1, "3": 3}.items():
        (tmp_path / f"{name}.jsonl").write_text(to_line(race(m=m)))
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(to_line(race(m=2)).encode()))
    assert [r.workload.m for r in evidence.read(tmp_path).races] == [1, 2, 3]


def test_a_cut_gzip_gives_the_lines_before_the_cut(tmp_path: Path) -> None:
    rows = [race(m=m, weights=os.urandom(40).hex()) for m in range(1, 30)]
    whole = gzip.compress("".join(map(to_line, rows)).encode())
    file, lengths = tmp_path / "r.jsonl.gz", set()
    for cut in range(2, len(whole), 41):
        file.write_bytes(whole[:cut])
        found = evidence.read(file)
        assert found.rows == tuple(rows[: len(found.rows)])
        assert [damage.line for damage in found.damage] == [len(found.rows) + 1]
        assert "cut" in found.damage[0].reason
        lengths.add(len(found.rows))
    assert len(lengths) > 20


def test_only_what_passed_has_a_measurement() -> None:
    bad = to_line(passed_trial()).replace('"status":"OK"', '"status":"WRONG"')
    with pytest.raises(ValueError, match="reason"):
        evidence._ROW.validate_json(bad)


def test_one_recorder_a_folder(tmp_path: Path) -> None:
    with Recorder(tmp_path), pytest.raises(BenchError, match="one tuner at a time"):
        Recorder(tmp_path)
    with Recorder(tmp_path):
        pass
    assert [*tmp_path.glob("*.jsonl")] == []  # nothing was measured, nothing is left


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write results to .*pass --out"):
        Recorder(tmp_path / "file" / "results")


@pytest.mark.parametrize("there", [
    "29991231T235959-1.jsonl", "99991231T235959-1.jsonl", "20269999T999999-1.jsonl.gz",
    "merged.jsonl.gz", "~.jsonl", "merged-29991231T235959-7.jsonl", "ä\n.jsonl",
])  # fmt: skip
def test_a_new_file_comes_after_all_that_are_there(tmp_path: Path, there: str) -> None:
    packed = gzip.compress if there.endswith(".gz") else bytes
    (tmp_path / there).write_bytes(packed(to_line(race(m=1)).encode()))
    for m in (2, 3, 4):
        with Recorder(tmp_path) as recorder:
            recorder.append(race(m=m))
    assert [r.workload.m for r in evidence.read(tmp_path).races] == [1, 2, 3, 4]


def test_the_last_recorded_race_is_the_newest_though_the_clock_jumped_back() -> None:
    first = race(1000, 500)
    last = race(1000, 999, time=first.time - timedelta(days=300))
    assert [line.won for line in summarize([first, last])] == [False]
    assert [line.won for line in summarize([last, first])] == [True]
    table = make_table(Evidence((first, last), ()), ["test"])
    assert table.lookup(48, 64, "mxfp4").choose(8) == candidate()


def test_a_table_prefers_a_cold_cache() -> None:
    warm = Policy(launch="eager", cache="warm")
    rows = (race(1000, 500), race(1000, 999, policy=warm))
    for order in (rows, rows[::-1]):
        table = make_table(Evidence(order, ()), ["test"])
        assert table.provenance["policy"] == {"launch": "eager", "cache": "cold"}
        assert table.lookup(48, 64, "mxfp4").choose(8) == candidate(mr=8)
    assert make_table(Evidence(rows[1:], ()), ["test"]).provenance["policy"]["cache"] == "warm"


def test_a_measurement_derives_median_interval_and_throughput() -> None:
    measured = measurement((5, 1, 3, 2, 4, 6, 7, 8, 9))
    low, high = measured.interval_ns
    assert measured.median_ns == 5
    assert 1 <= low < 5 < high <= 9
    assert measured.gflops(race().workload) == race().workload.flops / 5


def test_a_frame_has_a_row_for_each_trial_and_each_entry_of_a_race(tmp_path: Path) -> None:
    failed = failed_trial(Status.TIMEOUT, "no answer")
    raced = race().model_copy(update={"absent": {"torch_int8": "no such product"}})
    limits = Limits(device=DEVICE, toolchain=TOOLCHAIN, time=WHEN)
    evidence.write(tmp_path / "r.jsonl", (passed_trial(), limits, failed, raced))
    data = evidence.frame(tmp_path)
    assert data["role"].tolist() == [
        "trial",
        "trial",
        "default",
        "tuned",
        "torch_bf16",
        "torch_int8",
    ]
    assert data["record"].tolist() == [0, 2, 3, 3, 3, 3]
    assert data["status"].tolist() == ["OK", "TIMEOUT", "OK", "OK", "OK", "ABSENT"]
    assert data["reason"].dropna().tolist() == ["no answer", "no such product"]
    assert data["median_us"].dropna().tolist() == pytest.approx([1, 1.0045, 0.50225, 3.0135])
    assert data["config"][0] == candidate().config.label
    assert set(data["shape"]) == {"8×48×64"}
    assert data["time"][0].to_pydatetime() == WHEN
    empty = evidence.frame(Evidence((), ()))
    assert (empty.dtypes == data.dtypes).all()


def test_a_frame_of_damaged_results_warns(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(LINE + b"{\n[\n")
    with pytest.warns(DamageWarning, match=r"r.jsonl:2: skipped: .* \(and 1 more\)"):
        assert len(evidence.frame(tmp_path)) == 3


def test_rows_are_filtered_sorted_and_missed() -> None:
    data = listing.flat((passed_trial(3000), passed_trial(1000, m=1), race(recipe="nvfp4")))
    picked = Filters({"kind": ["trial"]}).pick(data)
    assert listing.ordered(picked, "median_us", False)["m"].tolist() == [1, 8]
    assert listing.ordered(picked, "median_us", True)["m"].tolist() == [8, 1]
    assert Filters({"m": [8], "recipe": ["nvfp4"]}).pick(data)["role"].tolist() == [
        "default", "tuned", "torch_bf16",
    ]  # fmt: skip
    assert Filters({"m": [9]}).hint(data) == "no row has m 9; there are: 1, 8"
    assert Filters({"m": [1], "recipe": ["nvfp4"]}).hint(data).startswith("each filter leaves rows")
    with pytest.raises(UsageError, match="--sort takes one of record, kind"):
        listing.ordered(data, "speed", False)


def documented(heading: str) -> list[str]:
    """First column of the table under a heading of the README."""
    _, _, after = README.read_text().partition(f"\n{heading}\n")
    return re.findall(
        r"^\| `(\w+)` \|", re.split(r"^#", after, flags=re.MULTILINE)[0], re.MULTILINE
    )


ROWS: dict[type, tuple[str, ...]] = {
    PassedTrial: ("Every row", "Trials and races", "PassedTrial"),
    FailedTrial: ("Every row", "Trials and races", "FailedTrial"),
    Race: ("Every row", "Trials and races", "Race"),
    Limits: ("Every row", "Limits"),
    FormatAccuracy: ("Every row", "FormatAccuracy"),
}
PARTS: list[type] = [
    Measurement, Policy, Telemetry, Accuracy, AttentionErrors, GemmWorkload, AttentionWorkload, Device,
    Toolchain, Candidate,
]  # fmt: skip


@pytest.mark.parametrize("kind", [*ROWS, *PARTS])
def test_every_field_is_in_the_data_dictionary(kind: Any) -> None:
    names = [
        name for part in ROWS.get(kind, (kind.__name__,)) for name in documented(f"### {part}")
    ]
    if dataclasses.is_dataclass(kind):
        expected = [field.name for field in dataclasses.fields(kind)]
    else:
        expected = list(kind.model_fields)
    assert sorted(names) == sorted(expected)


def test_every_column_is_in_the_data_dictionary() -> None:
    assert documented("## Columns of `evidence.frame`") == list(listing.COLUMNS)
    assert set(Telemetry.model_fields) <= set(listing.COLUMNS)


def test_a_written_file_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        evidence.write(tmp_path / name, (race(), passed_trial()))
        time.sleep(0.01)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    with files_of_at_most(100), pytest.raises(BenchError, match="cannot write .*pass another -o"):
        evidence.write(tmp_path / "c.jsonl", (race(),))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]


def test_names_follow_the_clock_where_it_goes_forward(tmp_path: Path) -> None:
    before = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    with Recorder(tmp_path) as recorder:
        assert before <= recorder.path.name[:15] <= datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
