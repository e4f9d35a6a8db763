"""Find a method by its name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from mpsearch.errors import UsageError

T = TypeVar("T")


def lookup(family: str, registry: Mapping[str, T], name: str) -> T:
    """The entry called ``name``; otherwise a ``UsageError`` with the closest name and the whole list."""
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(name, registry, n=1, cutoff=0.0)
    raise UsageError(f"unknown {family} {name!r}; the closest is {close[0]!r} of {', '.join(registry)}")


def make(family: str, registry: Mapping[str, type[T]], name: str, options: Mapping[str, Any] | None = None) -> T:
    """An instance of the method called ``name`` with the given options; its fields are its options."""
    method = lookup(family, registry, name)
    known = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    for option in options or {}:
        if option not in known:
            raise UsageError(f"{family} {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return method(**(options or {}))


def describe(name: str, method: Any) -> str:
    """A method with its options as text, for provenance: ``one-pass(probes=32, seed=0)``."""
    options = [
        f"{field.name}={value}"
        for field in dataclasses.fields(method)
        if isinstance(value := getattr(method, field.name), (int, float, str))
    ]
    return f"{name}({', '.join(options)})"
