"""A config is a call: `check` binds its keys to signatures before anything runs, `describe` turns calls back to data.

Knows the `_target_` convention of Hydra's instantiate, but not Hydra.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import Unpack, get_type_hints, is_typeddict

from framework.checks import MAX_SHOWN, shown

T = TypeVar("T")
SPECIAL_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
MOVED = {  # what a config may have named by its path → where it is now
    "experiments.adapter_mixes.run": "experiments.lora.adapter_mixes.run",
    "experiments.batching.run": "experiments.course.batching.run",
    "experiments.clock_fidelity.run": "experiments.fidelity.study.run",
    "experiments.engine_ablation.run": "experiments.speed.engine_ablation.run",
    "experiments.engine_speed.run": "experiments.speed.engine_speed.run",
    "experiments.generate.run": "experiments.generate.study.run",
    "experiments.kv_cache.run": "experiments.course.kv_cache.run",
    "experiments.lora.run": "experiments.lora.ranks.run",
    "experiments.lorax.run": "experiments.lorax.study.run",
    "experiments.multi_lora.run": "experiments.lora.multi_lora.run",
    "experiments.quantization.run": "experiments.quantization.study.run",
    "experiments.train_adapters.run": "experiments.training.train_adapters.run",
    "experiments.train_tiny.run": "experiments.training.train_tiny.run",
    "framework.corpus.read_corpus": "experiments.training.corpus.read_corpus",
    "framework.renderings.bytecode": "experiments.training.renderings.bytecode",
    "framework.renderings.html_page": "experiments.training.renderings.html_page",
    "framework.renderings.json_outline": "experiments.training.renderings.json_outline",
    "framework.renderings.python": "experiments.training.renderings.python",
    "framework.renderings.syntax_tree": "experiments.training.renderings.syntax_tree",
    "framework.tracking.wandb_tracker": "framework.report.tracking.wandb_tracker",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A keyword that a call takes; `hint` is Any where the signature says nothing."""

    hint: Any
    is_required: bool


def check(config: object, path: str = "") -> None:
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
    target = import_target(config["_target_"], path)
    given = {key: value for key, value in config.items() if key not in SPECIAL_KEYS}
    check_keywords(target, given, path)
    missing = [name for name, parameter in parameters_of(target).items() if parameter.is_required and name not in given]
    if missing and not config.get("_partial_"):
        place = f"{path} ({config['_target_']})" if path else config["_target_"]
        raise ValueError(f"missing {', '.join(missing)} in {place}")


def check_keywords(target: Callable[..., Any], given: Mapping[str, object], path: str) -> None:
    """Raise ValueError for a keyword that `target` does not have, or a simple value that is not of its type."""
    parameters = parameters_of(target)
    place = f"{path} ({target.__module__}.{target.__qualname__})" if path else target.__qualname__
    for key, value in given.items():
        if key not in parameters:
            raise ValueError(f"unknown key {shown(key)} in {place}{suggest(key, parameters)}")
        if not holds_call(value):
            check_type(parameters[key].hint, value, f"{path}.{key}" if path else key)


def parameters_of(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The keywords that `target` takes, in order; of `**keywords: Unpack[SomeTypedDict]`, each of the dict's keys."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        signature = inspect.signature(target)
    except (TypeError, ValueError, NameError) as error:  # of builtins and of other people's code
        raise ValueError(f"{shown(target)} does not tell what it takes: {error}") from error
    parameters: dict[str, Parameter] = {}
    for name, parameter in signature.parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parameters |= parameters_in(hint)
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            parameters[name] = Parameter(hint, parameter.default is inspect.Parameter.empty)
    return parameters


def parameters_in(hint: Any) -> dict[str, Parameter]:
    """The keys of an unpacked TypedDict; none of keywords that are only passed on, since a config has to name its."""
    if get_origin(hint) is not Unpack or not is_typeddict(get_args(hint)[0]):
        return {}
    [keywords] = get_args(hint)
    hints = get_type_hints(keywords)
    return {name: Parameter(hints[name], name in keywords.__required_keys__) for name in hints}


def check_type(hint: Any, value: Any, path: str) -> None:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = place_in(value, first["loc"])
        reasons = dict.fromkeys(problem["msg"] for problem in error.errors())
        raise ValueError(f"{path}{where} is {shown(first['input'])}: {'; '.join(reasons).lower()}") from None


def place_in(value: object, parts: tuple[int | str, ...]) -> str:
    """'.key' and '[index]' for what pydantic names of `value`, without its names of types."""
    where = ""
    for part in parts:
        if isinstance(value, dict) and part in value:
            where, value = f"{where}.{part}", value[part]
        elif isinstance(value, list) and isinstance(part, int):
            where, value = f"{where}[{part}]", value[part]
    return where


def holds_call(value: object) -> bool:
    """Whether a nested value becomes an object only when the config is called."""
    if isinstance(value, dict):
        return "_target_" in value or any(holds_call(item) for item in value.values())
    return isinstance(value, list) and any(holds_call(item) for item in value)


def import_target(dotted_path: object, path: str) -> Callable[..., Any]:
    """What `dotted_path` names; ValueError with its new path for what has moved. `path` is its place in the config."""
    place = path or "the config"
    if not isinstance(dotted_path, str):
        raise ValueError(f"{place}: _target_ is {shown(dotted_path)}: name a class or a function by its dotted path")
    if dotted_path in MOVED:
        raise ValueError(f"{place}: {dotted_path} has moved to {MOVED[dotted_path]}")
    module_name, _, name = dotted_path.rpartition(".")
    try:
        target = getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{place}: cannot import {shown(dotted_path)}: {error}") from error
    if not callable(target):
        raise ValueError(f"{place}: {dotted_path} is {shown(target)}: name a class or a function")
    return target


def suggest(word: str, allowed: Collection[str]) -> str:
    """'; did you mean …' for a typo or a part of a name, with everything that is allowed."""
    word = word[:MAX_SHOWN]
    in_folders = [name for name in allowed if name.endswith(f"/{word}")]
    parts = [name for name in allowed if word in name and len(word) > 2]
    close = in_folders or difflib.get_close_matches(word, list(allowed), n=1) or parts
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


def with_keywords(call: partial[T], **keywords: object) -> partial[T]:
    return partial(call.func, **(call.keywords | keywords))
