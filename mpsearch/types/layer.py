"""``Layer``, ``Layers`` and ``Unit``: what can be quantized, and what a solver assigns a format to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.format import Format


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

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    def allows(self, format: Format) -> bool:
        """Whether the layer can take ``format``: activations only where the owner is called, a width a channel."""
        fits = format.channel_bits is None or len(format.channel_bits) == self.channels
        return fits and (format.act_bits is None or self.act_elements > 0)


@dataclass(frozen=True)
class Unit:
    """A set of output channels of one layer, all of them by default: the thing a solver assigns a format to."""

    layer: str
    channels: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.layer if self.channels is None else f"{self.layer}[{','.join(map(str, self.channels))}]"


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

    def columns(self, formats: Sequence[Format]) -> tuple[Format, ...]:
        """The formats, and the weight-only form of each where some layer cannot take activations."""
        reduced = [f.weight_only for f in formats if not all(layer.allows(f) for layer in self.items)]
        return tuple(dict.fromkeys([*formats, *reduced]))

    def choices(self, layer: Layer, formats: Sequence[Format]) -> tuple[Format, ...]:
        """What ``layer`` may take of ``formats``, in that order; weight-only forms where it must."""
        return tuple(dict.fromkeys(f if layer.allows(f) else f.weight_only for f in formats))

    def to_json(self) -> dict[str, Any]:
        return {"rest_bytes": self.rest_bytes, "layers": [asdict(layer) for layer in self.items]}

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Layers:
        try:
            layers = tuple(TypeAdapter(Layer).validate_python(entry) for entry in payload["layers"])
            return cls(layers, int(payload["rest_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a list of layers: {str(error).splitlines()[0]}") from None
