"""Rows of earlier schemas: migrated without loss, and told apart from what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fp4bench import evidence, migrations
from fp4bench.trials import SCHEMA, to_line
from fp4kernels import Plan
from fp4kernels.errors import FormatError
from fp4kernels.registry import candidate_from_json
from samples import passed_trial, race

RECORDED = Path(__file__).parents[1] / "results" / "amd-epyc-x86-64-avx512vnni-2"
FIRST = RECORDED / "20261121T212856-8989.jsonl"  # of schema 1


def test_a_recorded_file_of_schema_1_is_read_whole() -> None:
    lines = [json.loads(line) for line in FIRST.read_bytes().splitlines()]
    assert {line["schema_version"] for line in lines} == {1}
    found = evidence.read(FIRST)
    assert found.damage == ()
    assert len(found.rows) == len(lines) == 228
    old = [line for line in lines if line["kind"] == "race"]
    assert [r.baseline.samples_ns for r in found.races] == [
        tuple(line["baseline"]["samples_ns"]) for line in old
    ]
    loads = {row.measurement.telemetry.load_average for row in found.trials}  # type: ignore[union-attr]
    assert None not in loads


def test_what_was_migrated_is_a_row_of_this_schema(tmp_path: Path) -> None:
    found = evidence.read(FIRST)
    evidence.write(tmp_path / "new.jsonl", found.rows)
    assert evidence.read(tmp_path / "new.jsonl") == found
    versions = {
        json.loads(x)["schema_version"] for x in (tmp_path / "new.jsonl").read_bytes().splitlines()
    }
    assert versions == {SCHEMA}


def test_a_row_of_this_schema_is_left_as_it_is() -> None:
    line = to_line(race())
    assert migrations.parsed(line.encode()) == json.loads(line)


GEMM = {"block_m": 16, "block_n": 64, "block_k": 128, "warps": 2, "stages": 4, "group_m": 1,
        "split_k": 8}  # fmt: skip


def of_a_gpu(**changes: int) -> dict[str, Any]:
    """A candidate as it was recorded before a thread could be held to some registers."""
    return {"recipe": "mxfp4", "variant": "decode_bf16", "layout": "interleaved",
            "config": {**GEMM, **changes}}  # fmt: skip


def test_a_config_field_that_came_later_is_read_as_what_was_done_before(tmp_path: Path) -> None:
    (trial,) = [json.loads(to_line(passed_trial()))]
    old = {**trial, "candidate_values": of_a_gpu()}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    found = evidence.read(tmp_path / "old.jsonl")
    assert found.damage == ()
    (row,) = found.trials
    assert row.candidate.config.values() == {**GEMM, "maxnreg": 0}
    evidence.write(tmp_path / "new.jsonl", found.rows)
    assert evidence.read(tmp_path / "new.jsonl") == found
    (line,) = (tmp_path / "new.jsonl").read_text().splitlines()
    assert json.loads(line)["candidate_values"] == of_a_gpu(maxnreg=0)
    assert Plan.from_json([{"m": 1, **of_a_gpu()}]) == Plan(((1, row.candidate),))


@pytest.mark.parametrize(
    "config", [{**GEMM, "maxregs": 0}, {k: GEMM[k] for k in GEMM if k != "split_k"}, {"maxnreg": 0}]
)
def test_no_other_field_may_be_absent_or_new(config: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="has the integer fields"):
        candidate_from_json({**of_a_gpu(), "config": config})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            '{"schema_version": 99}',
            "written by schema 99, but this fp4bench reads up to 4; upgrade",
        ),
        ('{"schema_version": 0}', "schema_version from 1 to 4, but got 0"),
        ('{"schema_version": true}', "but got True"),
        ("{}", "but got None"),
        ("[1]", "a row is a JSON object"),
        ('{"schema_version": 2, "a": 1, "a": 1}', "the key 'a' is there twice"),
        ('{"schema_version": 2, "a": NaN}', "NaN is no JSON number"),
        ('{"schema_version": 2, "a": 1e999}', "1e999 is too large a number"),
        ('{"schema_version": 2, "a": 9223372036854775808}', "too large a number"),
    ],
)
def test_what_is_no_row_says_why(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        migrations.parsed(line.encode())
