"""Find a method by its name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpsearch.errors import UsageError

T = TypeVar("T")
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def lookup(family: str, registry: Mapping[str, T], name: str) -> T:
    """The entry called ``name``; otherwise a ``UsageError`` with the closest name and the whole list."""
    if isinstance(name, str) and name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=1, cutoff=0.0)
    raise UsageError(f"unknown {family} {name!r}; the closest is {close[0]!r} of {', '.join(registry)}")


def make(family: str, registry: Mapping[str, type[T]], name: str, options: Mapping[str, Any] | None = None) -> T:
    """An instance of the method called ``name``; its fields are its options, their annotations are checked."""
    method, options = lookup(family, registry, name), dict(options or {})
    fields = {field.name: field for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    hints = get_type_hints(method)
    for option, value in options.items():
        if option not in fields:
            raise UsageError(f"{family} {name!r} has no option {option!r}; it has {', '.join(fields) or 'none'}")
        try:
            TypeAdapter(hints[option], config=_STRICT).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{family} {name!r}: {option} is {value!r}: {error.errors()[0]['msg']}") from None
    for field in fields.values():
        if field.name not in options and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{family} {name!r} needs the option {field.name!r}")
    return method(**options)


def describe(name: str, method: Any) -> str:
    """A method with its options as text, for provenance: ``one-pass(probes=32, seed=0)``."""
    options = [
        f"{field.name}={value}"
        for field in dataclasses.fields(method)
        if isinstance(value := getattr(method, field.name), (int, float, str))
    ]
    return f"{name}({', '.join(options)})"
