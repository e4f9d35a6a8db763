"""``Layer``, ``Layers`` and ``Unit``: what can be quantized, and what a solver assigns a format to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.format import FLOAT_BITS, Format
from mpsearch.types.storage import unfit

RangeFit = Literal["mse", "minmax"] | float  # how activation ranges are fitted; a number: percent of the values inside


@dataclass(frozen=True)
class Layer:
    """One quantizable tensor of a generator.

    Attributes:
        name: ``<module path>.<tensor>``, as in ``state_dict`` before any parametrization.
        kind: class of the owning module.
        shape: shape of the weight.
        channel_axis: the axis of ``shape`` that indexes output channels (1 for ConvTranspose).
        macs: multiply-accumulates for one sample, measured.
        act_elements: input activation elements for one sample; 0 = the owner is never called as a module, so that
            only its weights can be quantized.
        float_bytes: bytes of the ``state_dict`` entries that a quantized copy replaces.
        state_keys: those entries.
        aliases: further names of the very same tensor (tied weights); they share one format.
        largest_input: input activation elements of the largest single call, for one sample; None = ``act_elements``.
        input_parts: channels that each activation range of its input holds for: those of every tensor that it is
            concatenated from, or single ones; () = one range for the whole input.
        range_fit: how those ranges are fitted: for the least squared rounding error, to the extremes, or so that so
            many percent of the values are inside.
        pin: the only format that the layer may take.
        floor: the fewest weight bits that it may have.
        group: name of the first of the layers that it shares one format with; None = it has its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channel_axis: int
    macs: int
    act_elements: int
    float_bytes: int
    state_keys: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    largest_input: int | None = None
    input_parts: tuple[int, ...] = ()
    range_fit: RangeFit = "mse"
    pin: Format | None = None
    floor: float | None = None
    group: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    def allows(self, format: Format) -> bool:
        """Whether the layer can take ``format``: weights of its shape, activations only where the owner is called.

        What the user wants is another matter: :meth:`Layers.choices` knows pins and floors.
        """
        return not self.unfit(format) and (format.act_bits is None or self.act_elements > 0)

    def unfit(self, format: Format) -> str:
        """Why its shape cannot take ``format``; empty where it can."""
        return unfit(format, self.shape, self.channel_axis)

    def reaches_floor(self, format: Format) -> bool:
        return (format.weight_bits or FLOAT_BITS) >= (self.floor or 0)

    @property
    def rule(self) -> str:
        """What the user asked of the layer, in words; empty where nothing."""
        pinned = f"pinned to {self.pin}" if self.pin else ""
        floored = f"held to {self.floor:g} bits or more" if self.floor and not self.pin else ""
        together = f"together with {self.group}" if self.group not in (None, self.name) else ""
        return ", ".join(filter(None, (pinned, floored, together)))


@dataclass(frozen=True)
class Unit:
    """A set of output channels of one layer, all of them by default: the thing a solver assigns a format to.

    Attributes:
        layer: its name.
        channels: the output channels; None = all.
        others: further whole layers that take the same format.
    """

    layer: str
    channels: tuple[int, ...] | None = None
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels == () or (self.others and self.channels is not None):
            problem = "no channels" if self.channels == () else "channels, so that no other layer can share them"
            raise UsageError(f"a unit of {self.layer} has {problem}")

    def __str__(self) -> str:
        if self.channels is not None:
            return f"{self.layer}[{','.join(map(str, self.channels))}]"
        return " + ".join((self.layer, *self.others))


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """The quantizable tensors of one generator in ``named_modules`` order, and the bytes of everything else."""

    items: tuple[Layer, ...]
    rest_bytes: int

    @overload
    def __getitem__(self, key: int | str) -> Layer: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Layer]: ...
    def __getitem__(self, key: int | str | slice) -> Layer | Sequence[Layer]:
        if not isinstance(key, str):
            return self.items[key]
        for layer in self.items:
            if key == layer.name or key in layer.aliases:
                return layer
        raise UsageError(f"no layer is called {key!r}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def units(self) -> tuple[Unit, ...]:
        """One unit a layer."""
        return tuple(Unit(layer.name) for layer in self.items)

    @property
    def numel(self) -> int:
        return sum(layer.numel for layer in self.items)

    def together(self, layer: Layer) -> tuple[Layer, ...]:
        """The layers that share one format with ``layer``, itself among them."""
        if layer.group is None:
            return (layer,)
        return tuple(other for other in self.items if other.group == layer.group)

    def columns(self, formats: Sequence[Format]) -> tuple[Format, ...]:
        """The formats, the weight-only form of each where some layer cannot take activations, and the pins.

        Raises:
            UsageError: a layer is left without any choice; it is named.
        """
        for layer in self.items:
            if not self.choices(layer, formats):
                names = " + ".join(member.name for member in self.together(layer))
                given = ", ".join(map(str, formats))
                if layer.floor and not any(map(layer.reaches_floor, formats)):
                    raise UsageError(f"{names} has a floor of {layer.floor:g} bits, above every format of {given}")
                why = dict.fromkeys(member.unfit(format) for member in self.together(layer) for format in formats)
                reasons = "; ".join(filter(None, why))
                raise UsageError(f"{names} can take none of {given}" + (f": {reasons}" if reasons else ""))
        reduced = [f.weight_only for f in formats if not all(layer.allows(f) for layer in self.items)]
        pins = [layer.pin for layer in self.items if layer.pin]
        return tuple(dict.fromkeys([*formats, *reduced, *pins]))

    def choices(self, layer: Layer, formats: Sequence[Format]) -> tuple[Format, ...]:
        """What ``layer`` may take of ``formats``, in that order; weight-only forms where it, or one of the layers that
        it shares its format with, must. A pinned layer may take its pin alone, whether ``formats`` have it or not."""
        if layer.pin:
            return (layer.pin,)
        members = self.together(layer)
        usable = dict.fromkeys(f if all(m.allows(f) for m in members) else f.weight_only for f in formats)
        return tuple(f for f in usable if layer.reaches_floor(f) and all(m.allows(f) for m in members))

    def allowed(self, formats: Sequence[Format], columns: Sequence[Format]) -> list[list[bool]]:
        """Whether a layer may take a column where the user gave ``formats``, ``(layers, columns)``."""
        choices = [set(self.choices(layer, formats)) for layer in self.items]
        return [[column in own for column in columns] for own in choices]

    def to_json(self) -> dict[str, Any]:
        entries = [asdict(layer) | {"pin": str(layer.pin) if layer.pin else None} for layer in self.items]
        return {"rest_bytes": self.rest_bytes, "layers": entries}

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Layers:
        try:
            entries = [entry | {"pin": _pin(entry.get("pin"))} for entry in payload["layers"]]
            layers = tuple(TypeAdapter(Layer).validate_python(entry) for entry in entries)
            return cls(layers, int(payload["rest_bytes"]))
        except (KeyError, TypeError, AttributeError, ValueError, UsageError) as error:
            raise ArtifactError(f"not a list of layers: {str(error).splitlines()[0]}") from None


def _pin(text: str | None) -> Format | None:
    return None if text is None else Format.parse(text)
