"""The record: what is written is read back, and damage costs only the damaged line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp4bench import evidence
from fp4bench.errors import BenchError
from fp4bench.evidence import Recorder
from fp4bench.trials import Measurement, Policy, Status, to_line
from samples import failed_trial, passed_trial, race


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    rows = (passed_trial(), failed_trial(Status.TIMEOUT, "no <b>answer</b>\n"), race())
    with Recorder(tmp_path) as recorder:
        for row in rows:
            recorder.append(row)
    found = evidence.read(tmp_path)
    assert found.rows == rows
    assert found.damage == ()
    assert found.rows[0].candidate == passed_trial().candidate  # type: ignore[union-attr]


def test_a_file_cut_anywhere_in_its_last_line_loses_that_line_alone(tmp_path: Path) -> None:
    first, last = to_line(passed_trial()).encode(), to_line(race()).encode()
    file = tmp_path / "cut.jsonl"
    for cut in range(0, len(last) - 1, 37):
        file.write_bytes(first + last[:cut])
        found = evidence.read(file)
        assert found.rows == (passed_trial(),)
        assert len(found.damage) == (cut > 0)


def test_damage_names_file_line_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "rubbish.jsonl"
    newer = to_line(race()).replace('"schema_version":2', '"schema_version":99')
    file.write_bytes(b"\xff\x00rubbish\n" + to_line(race()).encode() + newer.encode())
    found = evidence.read(file)
    assert found.rows == (race(),)
    assert [damage.line for damage in found.damage] == [1, 3]
    assert str(found.damage[1]).startswith(f"{file}:3: skipped: ")
    assert "schema_version" in found.damage[1].reason


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


def test_results_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="does not exist"):
        evidence.read(tmp_path / "none")


def test_a_measurement_derives_median_interval_and_throughput() -> None:
    policy = Policy(launch="eager", cache="warm")
    measured = Measurement(samples_ns=(5, 1, 3, 2, 4, 6, 7, 8, 9), calls=1, warmup_calls=1,
                           timer="perf_counter", policy=policy)  # fmt: skip
    low, high = measured.interval_ns
    assert measured.median_ns == 5
    assert 1 <= low < 5 < high <= 9
    assert measured.gflops(race().workload) == race().workload.flops / 5
