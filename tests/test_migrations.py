"""Rows of earlier schemas: migrated without loss, and told apart from what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp4bench import evidence, migrations
from fp4bench.trials import SCHEMA, to_line
from samples import race

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


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            '{"schema_version": 99}',
            "written by schema 99, but this fp4bench reads up to 3; upgrade",
        ),
        ('{"schema_version": 0}', "schema_version from 1 to 3, but got 0"),
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
