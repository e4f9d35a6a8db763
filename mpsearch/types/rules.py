"""``ruled``: what the user asked of single layers (pins, floors, one format for several), resolved from globs."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mpsearch.errors import UsageError
from mpsearch.types.format import Format
from mpsearch.types.layer import Layer, Layers

Pins = Mapping[str, str | Format]
Floors = Mapping[str, float]
Together = Iterable[Iterable[str]]


def ruled(
    layers: Layers, pin: Pins | None = None, floor: Floors | None = None, together: Together | None = None
) -> Layers:
    """The layers with their pins, floors and groups.

    Layers that are together share what is asked of any of them: its pin, and the highest floor. Groups that have a
    layer in common are one group.

    Args:
        layers: found in a model, or another tool's.
        pin: glob → the one format of every layer that it matches; weight-only for a layer without activations.
        floor: glob → the fewest weight bits; of several floors the highest holds.
        together: lists of globs; all layers that a list matches take the same format.

    Raises:
        UsageError: a glob matches no layer (the closest is named), a layer has not the shape for its pin, or two rules
            contradict each other (both are named).
    """
    groups: dict[str, str] = {}
    for names in _groups(layers, together):
        groups |= dict.fromkeys(names, next(layer.name for layer in layers if layer.name in names))
    pinned = _pins(layers, _mapping("pin", pin))
    floors = _floors(layers, _mapping("floor", floor))
    found = []
    for layer in layers:
        group = groups.get(layer.name)
        members = [layer] if group is None else [other for other in layers if groups.get(other.name) == group]
        found.append(_resolved(layer, members, pinned, floors, group))
    return replace(layers, items=tuple(found))


def matching(pattern: str, names: Sequence[str]) -> set[str]:
    """The names that a glob matches; ``UsageError`` with the closest one where there is none."""
    if not isinstance(pattern, str):
        raise UsageError(f"{pattern!r} is no pattern of layer names")
    found = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise UsageError(f"the pattern {pattern!r} matches no layer; the closest is {close[0]!r}")
    return found


def _matched(pattern: str, layers: Layers) -> list[Layer]:
    hits = matching(pattern, [name for layer in layers for name in (layer.name, *layer.aliases)])
    return [layer for layer in layers if hits & {layer.name, *layer.aliases}]


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"{what} is {given!r}: expected a mapping from layer names or globs")
    return given


def _pins(layers: Layers, given: Mapping[str, Any]) -> dict[str, tuple[str, Format]]:
    """Layer → (the glob that pins it, its format)."""
    found: dict[str, tuple[str, Format]] = {}
    for pattern, text in given.items():
        format = text if isinstance(text, Format) else Format.parse(text)
        if format.channel_bits:
            raise UsageError(f"the pin {pattern!r} is {format}: a pinned layer has one width")
        for layer in _matched(pattern, layers):
            if why := layer.unfit(format):
                raise UsageError(f"{layer.name}, pinned by {pattern!r}, cannot take {format}: {why}")
            own = format if layer.allows(format) else format.weight_only
            other, before = found.setdefault(layer.name, (pattern, own))
            if before != own:
                raise UsageError(f"{layer.name} is pinned twice: {other!r} to {before}, {pattern!r} to {own}")
    return found


def _floors(layers: Layers, given: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, bits in given.items():
        if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 < bits < math.inf:
            raise UsageError(f"the floor {pattern!r} is {bits!r}: expected a number of weight bits such as 6")
        for layer in _matched(pattern, layers):
            found[layer.name] = max(found.get(layer.name, 0), bits)
    return found


def _groups(layers: Layers, together: Any) -> list[set[str]]:
    """Sets of names, disjoint."""
    found: list[set[str]] = []
    if isinstance(together, str) or not isinstance(together, Iterable | None):
        raise UsageError(f"together is {together!r}: expected a list of lists of globs")
    for patterns in together or ():
        if isinstance(patterns, str) or not isinstance(patterns, Iterable):
            raise UsageError(f"together holds {patterns!r}: expected a list of globs, such as [['*.q.*', '*.k.*']]")
        names = {layer.name for pattern in patterns for layer in _matched(pattern, layers)}
        names = names.union(*(group for group in found if group & names))
        found = [group for group in found if not group & names] + [names]
    return [group for group in found if len(group) > 1]


def _resolved(
    layer: Layer,
    members: Sequence[Layer],
    pins: Mapping[str, tuple[str, Format]],
    floors: Mapping[str, float],
    group: str | None,
) -> Layer:
    pinned = [(m.name, pins[m.name][1]) for m in members if m.name in pins]
    # Activations that one of the layers cannot take are taken from none of them.
    pinned = [(name, f if all(m.allows(f) for m in members) else f.weight_only) for name, f in pinned]
    floored = max(((floors[m.name], m.name) for m in members if m.name in floors), default=None)
    for name, format in pinned:
        if format != pinned[0][1]:
            other, first = pinned[0]
            raise UsageError(f"{other} and {name} are together but pinned to {first} and {format}")
    pin = pinned[0][1] if pinned else None
    resolved = replace(layer, pin=pin, floor=floored[0] if floored else None, group=group)
    if pin and floored and not resolved.reaches_floor(pin):
        name = pinned[0][0]
        where = "its floor" if floored[1] == name else f"the floor of {floored[1]}, with which it is together,"
        raise UsageError(f"{name} is pinned to {pin}, under {where} of {floored[0]:g} bits")
    return resolved
