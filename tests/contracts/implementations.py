"""Finds the classes that implement a protocol: those of a package, and those of the README's code."""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any, get_type_hints

from typing_extensions import is_protocol

from framework.paths import ROOT

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def implementations(package: ModuleType, *methods: str) -> list[type]:
    """The classes with these methods that the package's modules define, whatever their depth."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    return [one for module in modules for one in classes_of(vars(module), module.__name__, *methods)]


def factories(package: ModuleType, made: type) -> list[Any]:
    """The functions of the package's modules that say they return a `made`, and the classes that can be called."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    found: list[Any] = implementations(package, "__call__")
    for module in map(importlib.import_module, names):
        functions = [
            one for _, one in inspect.getmembers(module, inspect.isfunction) if one.__module__ == module.__name__
        ]
        found += [one for one in functions if get_type_hints(one).get("return") is made]
    return found


def readme_classes(*methods: str) -> list[type]:
    """The classes with these methods that the README's Python blocks define."""
    found = []
    for block in PYTHON_BLOCK.findall((ROOT / "README.md").read_text()):
        namespace: dict[str, Any] = {"__name__": "readme"}
        exec(compile(block, "README.md", "exec"), namespace)
        found += classes_of(namespace, "readme", *methods)
    return found


def classes_of(namespace: dict[str, Any], module: str, *methods: str) -> list[type]:
    own = [one for one in namespace.values() if inspect.isclass(one) and one.__module__ == module]
    return [one for one in own if not is_protocol(one) and all(hasattr(one, method) for method in methods)]
