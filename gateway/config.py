"""The settings of a process, from wherever they are written: flags, `RINGCAST_*` environment, TOML; none unknown."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.settings import PREFIX, ConfigError, Policy, Settings

CLIENT_VARIABLES = {"RINGCAST_URL", "RINGCAST_API_KEY", "RINGCAST_TOKEN", "RINGCAST_CONFIG"}


def load(config: Path | None = None, **flags: Any) -> Settings:
    """The settings of this process: `flags` that are not None, then the environment, then the TOML file.

    The file is `config` or the one that RINGCAST_CONFIG names. Raises ConfigError, with one line for each thing that is
    wrong; a secret's value is never part of it.
    """
    _check_variables(os.environ)
    given = {name: value for name, value in flags.items() if value is not None}
    path = config or (Path(named) if (named := os.environ.get("RINGCAST_CONFIG")) else None)
    filed = _read(path) if path else {}
    under = {name: value for name, value in filed.items() if name not in given and not os.environ.get(_variable(name))}
    try:
        return Settings(**under, **given)
    except ValidationError as error:
        found = [_sentence(fault, given, path) for fault in error.errors(include_url=False, include_input=False)]
        raise ConfigError("\n".join(found)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from None


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _check_variables(environment: Mapping[str, str]) -> None:
    known = {_variable(name) for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        found = [f"{name} is not a setting of Ringcast{_nearest(name.upper(), known)}." for name in unknown]
        raise ConfigError("\n".join(found))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


_WRONG = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a duration such as 250ms, 30s, 5m or 24h",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list of strings",
    "dict_type": "can only be set in a TOML file, as [channels.NAMESPACE] tables",
    "model_type": "must be a table, such as [channels.room] and history_size = 100",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}


def _sentence(fault: Any, given: Mapping[str, Any], path: Path | None) -> str:
    """One of pydantic's errors as a sentence that names the setting the way its user wrote it."""
    where = [str(part) for part in fault["loc"]]
    context = fault.get("ctx", {})
    if fault["type"] == "extra_forbidden":
        known = Policy.model_fields if where[0] == "channels" and len(where) > 1 else Settings.model_fields
        return f"{_place(where, given, path)} is not a setting of Ringcast{_nearest(where[-1], known)}."
    said = str(context["error"]) if fault["type"] == "value_error" else _WRONG.get(fault["type"], fault["msg"])
    if not where:
        return f"{said}."
    return f"{_place(where, given, path)}: {said.format(**context) if fault['type'] in _WRONG else said}."


def _place(where: list[str], given: Mapping[str, Any], path: Path | None) -> str:
    name = where[0]
    if name in given:
        return "--" + name.replace("_", "-")
    if os.environ.get(_variable(name)):
        return _variable(name)
    return f"{'.'.join(where)} in {path}" if path else ".".join(where)
