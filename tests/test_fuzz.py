"""Fuzzed results and tables: a documented error or a sound value, and no neighbour is lost."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fp4bench import evidence
from fp4bench.evidence import Evidence
from fp4bench.export import make_table
from fp4bench.trials import Limits, Status, to_line
from fp4kernels import Table, TableError
from samples import DEVICE, TOOLCHAIN, WHEN, failed_trial, passed_trial, race

LINES, FILES = 25, 480  # 12,000 fuzzed lines
TABLES = 1500

GOOD = race(m=77)
ROWS = [
    passed_trial(), failed_trial(Status.WRONG, "element 3 is off"), race(),
    race().model_copy(update={"absent": {"torch_int8": "none here"}}),
    Limits(device=DEVICE, toolchain=TOOLCHAIN, time=WHEN, memory_read=12.5, bf16=3000.0),
]  # fmt: skip
TEXTS = [to_line(row).strip().encode() for row in ROWS]
TABLE = make_table(Evidence((race(m=1), race(m=8), race(recipe="nvfp4")), ()), ["test"])

ODD = [
    None, True, False, "", "48", "mxfp4", "OK", "race", "\ud800", "\0", "2026-01-02", [], {}, [[]],
    0, 1, -1, 8, 48.5, 2**31, 2**63, 10**400, 5e-324, 1.7e308, math.inf, -math.inf, math.nan,
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.sampled_from(ODD) | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
SETTINGS = {"deadline": None, "database": None, "derandomize": True,
            "suppress_health_check": list(HealthCheck)}  # fmt: skip


def flipped(draw: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def cut(draw: random.Random, text: bytes) -> bytes:
    return text[: draw.randrange(len(text))]


def spliced(draw: random.Random, text: bytes) -> bytes:
    other = draw.choice((text, *TEXTS))
    return text[: draw.randrange(len(text))] + other[draw.randrange(len(other)) :]


def stuffed(draw: random.Random, text: bytes) -> bytes:
    at = draw.randrange(len(text))
    return text[:at] + draw.randbytes(draw.choice((1, 4, 300))) + text[at:]


def renumbered(draw: random.Random, text: bytes) -> bytes:
    """Another digit: most of these stay valid JSON."""
    digits = [i for i, byte in enumerate(text) if byte in b"0123456789"]
    data = bytearray(text)
    for _ in range(draw.choice((1, 3))):
        data[draw.choice(digits)] = draw.choice(b"0123456789-.eE")
    return bytes(data)


MUTATORS: list[Callable[[random.Random, bytes], bytes]] = [
    flipped, cut, spliced, stuffed, renumbered,
]  # fmt: skip


def put(draw: random.Random, values: Any, new: Any) -> Any:
    """`new` in place of, or beside, something within `values`."""
    if not isinstance(values, dict | list) or not values or draw.random() < 0.2:
        return draw.choice((new, *ODD))
    keys = list(values) if isinstance(values, dict) else range(len(values))
    key = draw.choice(keys)
    changed = values.copy()
    if isinstance(changed, dict) and draw.random() < 0.15:
        changed.pop(key)
    elif isinstance(changed, dict) and draw.random() < 0.15:
        changed[draw.choice(("more", "m", "recipe"))] = new
    else:
        changed[key] = put(draw, values[key], new)
    return changed


def mutated(draw: random.Random, text: bytes, new: Any) -> bytes:
    if draw.random() < 0.5:
        found = json.dumps(put(draw, json.loads(text), new)).encode()
    else:
        found = draw.choice(MUTATORS)(draw, text)
    return found.replace(b"\n", b" ")


@settings(max_examples=FILES, **SETTINGS)
@given(seed=st.integers(0, 2**64), new=VALUES, packed=st.booleans())
def test_fuzzed_lines_are_rows_or_damage(
    tmp_path_factory: pytest.TempPathFactory, seed: int, new: Any, packed: bool
) -> None:
    draw = random.Random(seed)
    lines = [mutated(draw, draw.choice(TEXTS), new) for _ in range(LINES)]
    good = to_line(GOOD).encode()
    data = good + b"".join(line + b"\n" + good for line in lines)
    file = tmp_path_factory.getbasetemp() / ("fuzz.jsonl.gz" if packed else "fuzz.jsonl")
    file.write_bytes(gzip.compress(data, 1) if packed else data)
    found = evidence.read(file)
    blank = sum(not line.strip() for line in lines)
    assert sum(row == GOOD for row in found.rows) >= LINES + 1
    assert len(found.rows) + len(found.damage) == 2 * LINES + 1 - blank
    assert {damage.line % 2 for damage in found.damage} <= {0}
    assert all(str(damage).isprintable() for damage in found.damage)
    evidence.write(file, found.rows)
    assert evidence.read(file) == Evidence(found.rows, ())
    assert len(evidence.frame(found)) >= 3 * (LINES + 1)


@settings(max_examples=60, **SETTINGS)
@given(data=st.binary(max_size=400), name=st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_fuzzed_files_are_damage(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(data)
    (folder / "s.jsonl").write_text(to_line(GOOD))
    assert evidence.read(folder).rows == (GOOD,)


@pytest.fixture(scope="module")
def table_text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("table") / "table.json"
    TABLE.save(file)
    return file.read_bytes()


@settings(max_examples=TABLES, **SETTINGS)
@given(seed=st.integers(0, 2**64), new=VALUES)
def test_fuzzed_tables_are_tables_or_a_table_error(
    tmp_path_factory: pytest.TempPathFactory, table_text: bytes, seed: int, new: Any
) -> None:
    draw = random.Random(seed)
    file: Path = tmp_path_factory.getbasetemp() / "table.json"
    file.write_bytes(mutated(draw, table_text, new))
    try:
        table = Table.read(file)
    except TableError:
        return
    for (op, n, k, recipe), plan in table.plans.items():
        assert table.lookup(n, k, recipe, op) is plan
        assert plan.choose(1).recipe == recipe
    table.save(file)
    assert Table.read(file) == table


@pytest.mark.parametrize("change", [
    {"n": math.inf}, {"n": 48.5}, {"n": "48"}, {"n": True}, {"op": ["gemm"]}, {"recipe": None},
    {"k": 64},
])  # fmt: skip
def test_an_entry_of_odd_sizes_is_refused(
    tmp_path: Path, table_text: bytes, change: dict[str, Any]
) -> None:
    values = json.loads(table_text)
    values["entries"].append({**values["entries"][0], **change})  # the last: the same entry twice
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(TableError):
        Table.read(tmp_path / "t.json")
