"""Rows of earlier schemas, brought to this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fp4bench.trials import REFERENCE, SCHEMA

Values = dict[str, Any]


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


_STEPS: Mapping[int, Callable[[Values], Values]] = {1: _from_1}
