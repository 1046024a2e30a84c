"""The methods by name; a method registers itself beside its options."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import TypeVar

import rebalance.methods
from rebalance.config.method import MethodOptions
from rebalance.config.options import nearest
from rebalance.errors import InputError

O = TypeVar("O", bound=type[MethodOptions])  # noqa: E741

EXTRA_METHODS = "REBALANCE_METHODS"
"""Environment variable with importable modules, separated by commas, that register further methods."""

_OPTIONS: dict[str, type[MethodOptions]] = {}


def register(name: str) -> Callable[[O], O]:
    """Register the decorated options class as the method `name`, as recipes call it.

    Raises:
        ValueError: another class has this name.
    """

    def registered(options: O) -> O:
        registered_class = _OPTIONS.setdefault(name, options)
        if registered_class.__qualname__ != options.__qualname__:
            raise ValueError(f"the method {name!r} is registered twice: {registered_class} and {options}")
        _OPTIONS[name], options.method_name = options, name
        return options

    return registered


@functools.cache
def _import_methods() -> None:
    """Import every package below `methods/`, and the modules that the environment names."""
    modules = pkgutil.iter_modules(rebalance.methods.__path__)
    packages = [f"rebalance.methods.{module.name}" for module in modules if module.ispkg]
    further = [name.strip() for name in os.environ.get(EXTRA_METHODS, "").split(",") if name.strip()]
    for module in (*packages, *further):
        importlib.import_module(module)


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    _import_methods()
    return tuple(sorted(_OPTIONS))


def method_options(name: object) -> type[MethodOptions]:
    """Return the options class of a method.

    Raises:
        InputError: no method has this name; the nearest one is named.
    """
    _import_methods()
    if name is None:
        raise InputError("the recipe names no method", allowed=f"method: {' | '.join(sorted(_OPTIONS))}")
    if not isinstance(name, str) or name not in _OPTIONS:
        raise InputError("recipe key method is unknown", value=name, remedy=nearest(str(name), _OPTIONS))
    return _OPTIONS[name]
