"""fp4bench.toml: a table of options per command, checked before any is used."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fp4bench.errors import UsageError
from fp4kernels.errors import FormatError
from fp4kernels.formats import named


class Parameter(Protocol):
    """What is asked of a command's option."""

    name: str | None
    opts: list[str]
    multiple: bool
    is_flag: bool


Commands = Mapping[str, list[Any]]  # name → parameters


def defaults(path: Path, commands: Commands) -> dict[str, dict[str, Any]]:
    """Command → parameter → value, from a TOML file. Raises UsageError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"cannot read {path}: {why}; mend or remove it") from error
    try:
        return {name: _of_command(name, named("command", name, commands), table)
                for name, table in values.items()}  # fmt: skip
    except (FormatError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from error


def _of_command(command: str, parameters: list[Any], table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(
            f"a command's options are a table [{command}], but got {command} = {table!r}"
        )
    options = {
        opt.removeprefix("--"): p for p in parameters for opt in p.opts if opt.startswith("--")
    }
    found = {}
    for key, value in table.items():
        option = named(f"[{command}] option", key.replace("_", "-"), options)
        found[option.name] = _value(f"[{command}] {key}", option, value)
    return found


def _value(where: str, option: Parameter, value: Any) -> Any:
    if option.is_flag:
        rule, fits = "true or false", isinstance(value, bool)
    elif option.multiple:
        rule, fits = "a text or a list of texts", all(map(_scalar, _list(value)))
    else:
        rule, fits = "a text or a number", _scalar(value)
    if not fits:
        raise UsageError(f"{where} is {rule}, but got {value!r}")
    if option.is_flag:
        return value
    return [str(item) for item in _list(value)] if option.multiple else str(value)


def _scalar(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
