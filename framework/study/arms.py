"""Arms: what each variant of a study is made of, and in which order their points run.

An arm is a mapping of components. A component of an arm replaces the study's own, or, where it is a plain mapping of
keywords, changes only these.
"""

import re
from collections.abc import Mapping
from typing import Any

from framework.config import check_keywords, check_type, describe, suggest, with_keywords
from framework.replay import Clock
from framework.study.files import digest_of

Arms = dict[str, dict[str, Any]]
COMPONENTS = ("scheduler", "engine", "model", "quantization", "lora", "trace", "clock")


def model_digest(arm: dict[str, Any]) -> str:
    return digest_of(describe([arm["model"], arm["quantization"], arm["lora"]]))


def engine_digest(arm: dict[str, Any]) -> str:
    return digest_of(describe([arm["model"], arm["quantization"], arm["lora"], arm["engine"]]))


def resolve_arms(arms: Arms, defaults: dict[str, Any]) -> Arms:
    """Every arm with all its components; raises ValueError for an unknown component or keyword."""
    resolved = {}
    for arm, components in arms.items():
        if not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"arm name {arm!r} names a folder: use letters, digits, '_', '.', '+' and '-' only")
        if not isinstance(components, dict):
            raise ValueError(f"arms.{arm} is {components!r}: give a mapping of {', '.join(COMPONENTS)}")
        changed = {name: resolve_component(arm, name, value, defaults) for name, value in components.items()}
        resolved[arm] = defaults | changed
        missing = [name for name in COMPONENTS if name not in resolved[arm]]
        if missing:
            raise ValueError(f"arms.{arm} has no {', '.join(missing)}, and the study gives none")
    return resolved


def parts_of(keywords: Mapping[str, object]) -> dict[str, Any]:
    """The components among a study's keywords: what its arms have, unless they change it."""
    return {name: keywords[name] for name in COMPONENTS if name in keywords}


def resolve_component(arm: str, name: str, value: Any, defaults: dict[str, Any]) -> Any:
    if name not in COMPONENTS:
        raise ValueError(f"unknown component {name!r} in arms.{arm}{suggest(name, COMPONENTS)}")
    if name == "clock":
        check_type(Clock, value, f"arms.{arm}.clock")
        return value
    if callable(value):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"arms.{arm}.{name} is {value!r}: give another {name}, or a mapping of keywords to change")
    if name not in defaults:
        raise ValueError(f"arms.{arm}.{name} changes keywords of a {name} that the study does not have")
    check_keywords(defaults[name].func, value, f"arms.{arm}.{name}")
    return with_keywords(defaults[name], **value)


def point_order(arms: Arms, rates: list[float | None], seeds: list[int]) -> list[tuple[str, float | None, int]]:
    """All arms of one seed before the next, in changing order, so that a drift of the machine's speed meets all.

    Arms that share a model, and an engine, are neighbours; the next seed begins with the engine at hand.
    """
    models: dict[str, dict[str, list[str]]] = {}  # model → engine → arms
    for arm, components in arms.items():
        engines = models.setdefault(model_digest(components), {})
        engines.setdefault(engine_digest(components), []).append(arm)
    neighbours = [names for engines in models.values() for names in engines.values()]
    order: list[tuple[str, float | None, int]] = []
    for seed in seeds:
        for names in neighbours:
            for rate in rates:
                order += [(arm, rate, seed) for arm in names]
                names.reverse()
        neighbours.reverse()
    return order
