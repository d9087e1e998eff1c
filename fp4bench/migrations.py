"""A recorded line as the values of a row of this schema; lines of earlier schemas are migrated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from fp4bench.trials import REFERENCE, SCHEMA

Values = dict[str, Any]


def parsed(line: bytes) -> Values:
    """ValueError if the line is no strict JSON, no row, or of a schema yet to come."""
    text = line.decode("utf-8-sig")  # an editor may have put a byte-order mark before a file
    values = json.loads(
        text, object_pairs_hook=_object, parse_constant=_not_json,
        parse_float=_finite, parse_int=_int64,
    )  # fmt: skip
    if "\\ud" in text.lower():  # half a surrogate pair could not be written again
        json.dumps(values, ensure_ascii=False).encode()
    return current(values)


def current(values: object) -> Values:
    """The row as SCHEMA has it. ValueError if it is no row, or of a schema yet to come."""
    if not isinstance(values, dict):
        raise ValueError("a row is a JSON object")
    version = values.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"a row has a schema_version from 1 to {SCHEMA}, but got {version!r}")
    if version > SCHEMA:
        raise ValueError(
            f"written by schema {version}, but this fp4bench reads up to {SCHEMA}; upgrade it"
        )
    for step in range(version, SCHEMA):
        values = {**_STEPS[step](values), "schema_version": step + 1}
    return values


def _from_1(values: Values) -> Values:
    """Schema 1 had one baseline, torch's bf16 linear."""
    if values.get("kind") != "race":
        return values
    rest = {name: value for name, value in values.items() if name != "baseline"}
    return {**rest, "baselines": {REFERENCE: values.get("baseline")}}


def _from_2(values: Values) -> Values:
    """Schema 2 did not sample the default beside every trial: that is None."""
    return values


def _from_3(values: Values) -> Values:
    """Schema 3 had one format for both operands of an accuracy: `activation` is None."""
    return values


_STEPS: Mapping[int, Callable[[Values], Values]] = {1: _from_1, 2: _from_2, 3: _from_3}


def _object(pairs: list[tuple[str, Any]]) -> Values:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _int64(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text[:20]} is too large a number")
    return value
