"""A config is a call: `check` binds its keys to signatures before anything runs, `describe` turns calls back to data.

Knows the `_target_` convention of Hydra's instantiate, but not Hydra.
"""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

SPECIAL_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(config: Any, path: str = "") -> None:
    """Raise ValueError, naming the key, for every `_target_` whose keys or simple values do not fit its signature."""
    if isinstance(config, dict):
        if "_target_" in config:
            check_call(config, path)
        for key, value in config.items():
            check(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            check(value, f"{path}[{index}]")


def check_call(config: dict[str, Any], path: str) -> None:
    target = locate(config["_target_"], path)
    given = {key: value for key, value in config.items() if key not in SPECIAL_KEYS}
    check_keywords(target, given, path)
    parameters = inspect.signature(target).parameters
    place = f"{path} ({config['_target_']})" if path else config["_target_"]
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in given]
    if missing and not config.get("_partial_"):
        raise ValueError(f"missing {', '.join(missing)} in {place}")


def check_keywords(target: Callable[..., Any], given: dict[str, Any], path: str) -> None:
    """Raise ValueError for a keyword that `target` does not have, or a simple value that is not of its type."""
    parameters = inspect.signature(target).parameters
    place = f"{path} ({target.__module__}.{target.__qualname__})" if path else target.__qualname__
    for key in given:
        if key not in parameters:
            raise ValueError(f"unknown key {key!r} in {place}{suggest(key, parameters)}")
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key, value in given.items():
        if key in hints and not holds_call(value):
            check_type(hints[key], value, f"{path}.{key}" if path else key)


def check_type(hint: Any, value: Any, path: str) -> None:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = place_in(value, first["loc"])
        reasons = dict.fromkeys(problem["msg"] for problem in error.errors())
        raise ValueError(f"{path}{where} is {first['input']!r}: {'; '.join(reasons).lower()}") from None


def place_in(value: Any, parts: tuple[int | str, ...]) -> str:
    """'.key' and '[index]' for what pydantic names of `value`, without its names of types."""
    where = ""
    for part in parts:
        if isinstance(value, dict) and part in value:
            where, value = f"{where}.{part}", value[part]
        elif isinstance(value, list) and isinstance(part, int):
            where, value = f"{where}[{part}]", value[part]
    return where


def holds_call(value: Any) -> bool:
    """Whether a nested value becomes an object only when the config is called."""
    if isinstance(value, dict):
        return "_target_" in value or any(holds_call(item) for item in value.values())
    return isinstance(value, list) and any(holds_call(item) for item in value)


def locate(dotted_path: str, path: str) -> Callable[..., Any]:
    module_name, _, name = dotted_path.rpartition(".")
    try:
        return getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path or 'the config'}: cannot import {dotted_path!r}: {error}") from error


def suggest(word: str, allowed: Any) -> str:
    """'; did you mean …' for a typo or a part of a name, with everything that is allowed."""
    parts = [name for name in allowed if word in name and len(word) > 2]
    close = difflib.get_close_matches(word, list(allowed), n=1) or parts
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint}; allowed: {', '.join(allowed)}"


def describe(value: Any) -> Any:
    """Plain data from which Hydra's instantiate rebuilds `value`; partials have their defaults filled in."""
    if isinstance(value, partial):
        parameters = inspect.signature(value.func).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        arguments = defaults | value.keywords
        return {
            "_target_": f"{value.func.__module__}.{value.func.__qualname__}",
            "_partial_": True,
            **{key: describe(item) for key, item in arguments.items()},
        }
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if callable(value):
        return {"_target_": f"{value.__module__}.{value.__qualname__}", "_partial_": True}
    return value


def with_keywords(call: partial[Any], **keywords: Any) -> partial[Any]:
    return partial(call.func, **(call.keywords | keywords))
