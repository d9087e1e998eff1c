"""Covering arrays: few rows in which every pair of values of two factors stands side by side."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Value = tuple[str, Any]  # of a factor
GREEDY, TRIES = 8, 64  # rows for one pair, and with those of chance, before it is not allowed


def covering(factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Rows with a value for each of two factors or more, all `allowed`, that hold every pair of values
    which an allowed row was found for. Greedy: no array of the fewest rows, but always the same one."""
    chance = random.Random(0)
    left = dict.fromkeys(
        pair for one, other in itertools.combinations(factors, 2)
        for pair in itertools.product(_values(factors, one), _values(factors, other))
    )  # fmt: skip
    found: list[Row] = []
    while left:
        pair = next(iter(left))
        rows = (_row(pair, factors, left if i < GREEDY else {}, chance) for i in range(TRIES))
        row = next(filter(allowed, rows), None)
        if row is None:
            del left[pair]
            continue
        found.append(row)
        for seen in itertools.combinations(row.items(), 2):
            left.pop(seen, None)
    return found


def _values(factors: Mapping[str, Sequence[Any]], name: str) -> list[Value]:
    return [(name, value) for value in factors[name]]


def _row(
    pair: tuple[Value, Value],
    factors: Mapping[str, Sequence[Any]],
    left: Mapping[tuple[Value, Value], None],
    chance: random.Random,
) -> dict[str, Any]:
    """`pair`, and factor by factor the value that adds the most pairs of those that are left."""
    row, order = dict(pair), list(factors)
    chance.shuffle(order)
    for name in order:
        if name in row:
            continue
        values = _values(factors, name)
        chance.shuffle(values)
        _, row[name] = max(values, key=lambda value: _gain(value, row, factors, left))
    return {name: row[name] for name in factors}


def _gain(
    value: Value,
    row: Mapping[str, Any],
    factors: Mapping[str, Sequence[Any]],
    left: Mapping[tuple[Value, Value], None],
) -> int:
    places = {name: place for place, name in enumerate(factors)}
    pairs = (
        (value, held) if places[value[0]] < places[held[0]] else (held, value)
        for held in row.items()
    )
    return sum(pair in left for pair in pairs)
