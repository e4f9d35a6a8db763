"""Every weight in every format, quantized once and kept as codes."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.layers import Site, find_sites
from mpsearch.quant.stored import Integers, QuantizedWeight, quantize_weight
from mpsearch.quant.stored.entropy import CODABLE, coded_bytes
from mpsearch.types import BitMap, Format, Ranges
from mpsearch.types.storage import unfit


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a recovery made of a map.

    Attributes:
        weights: layer → its weight in the stored form, in the format that the map has for it.
        tensors: name in ``state_dict`` → new value, of parameters and buffers that are not quantized (biases, norms).
        ranges: layer → ranges of its activations in place of those of the map.
        formats: layer → format in place of that of the map.
        floats: layer, or name in ``state_dict`` → other float values with which the generator draws the same pictures;
            a layer without new ``weights`` is quantized from these.
    """

    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    formats: Mapping[str, Format] = field(default_factory=dict)
    floats: Mapping[str, Tensor] = field(default_factory=dict)


class WeightBank:
    """Quantized weights of one generator, made on first use from the weights that it had when the bank was opened.

    A search puts the same few formats on the same weights thousands of times; int8 codes and scales cost a quarter of
    the float weights a format.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sites = {name: site for site in find_sites(model) for name in site.names}
        self._kept: dict[tuple[str, Format], QuantizedWeight] = {}
        self.tensors: Mapping[str, Tensor] = {}  # in place of the model's own, see Recovered
        self.ranges: Mapping[str, Ranges] = {}  # in place of those of a map
        self.formats: Mapping[str, Format] = {}  # likewise
        self.floats: Mapping[str, Tensor] = {}  # of the float generator, in place of the model's own

    def recovered(self, bitmap: BitMap, found: Recovered) -> WeightBank:
        """This bank with what a recovery made of the map."""
        bank = copy.copy(self)
        formats = {**bitmap, **found.formats}
        kept = {key: own for key, own in self._kept.items() if self.first(key[0]) not in found.floats}
        bank._kept = kept | {(name, formats[name].weight_only): own for name, own in found.weights.items()}
        bank.tensors = {**self.tensors, **found.tensors}
        bank.ranges = {**self.ranges, **found.ranges}
        bank.formats = {**self.formats, **found.formats}
        bank.floats = {**self.floats, **found.floats}
        return bank

    def site(self, layer: str) -> Site:
        """Where the layer lives; a name that the model lacks is a ``UsageError`` with the closest one."""
        if layer not in self._sites:
            close = difflib.get_close_matches(layer, self._sites, n=1, cutoff=0.0)
            raise UsageError(f"the model has no layer {layer!r}; the closest is {close[0]!r}")
        return self._sites[layer]

    def normalised(self, bitmap: BitMap) -> BitMap:
        """The map with every tied tensor under its first name, and what a recovery has put in place of its formats and
        ranges; two formats for one tensor are a ``UsageError``."""
        formats: dict[str, Format] = {}
        for name, format in bitmap.items():
            first = self.site(name).names[0]
            if formats.setdefault(first, format) != format:
                raise UsageError(f"{name} is the same tensor as {first}: it cannot be {format} and {formats[first]}")
        formats |= {name: format for name, format in self.formats.items() if name in formats}
        return BitMap(
            formats, {self.site(name).names[0]: span for name, span in {**bitmap.ranges, **self.ranges}.items()}
        )

    def first(self, place: str) -> str:
        """The layer whose tensor is read at ``place``."""
        return self.site(place).names[0]

    def weight(self, layer: str) -> Tensor:
        """The float weight that the generator computes with."""
        site = self.site(layer)
        return self.floats.get(site.names[0], site.weight)

    def quantized(self, layer: str, format: Format) -> QuantizedWeight:
        """The stored form; activations do not matter here. ``format`` must not keep the weights float.

        Raises:
            UsageError: the layer cannot take the format.
        """
        key = (layer, format.weight_only)
        if format.channel_bits is not None and key not in self._kept:
            return self._mixed(layer, format.weight_only, format.channel_bits)
        if key not in self._kept:
            try:
                self._kept[key] = quantize_weight(self.weight(layer), format, self.site(layer).axis)
            except UsageError as error:
                raise UsageError(f"{layer} cannot take {error}") from None
        return self._kept[key]

    def quantize(self, layer: str, formats: Iterable[Format]) -> None:
        """Make the plain integers among the formats, all at once: faster than one after the other."""
        plain = dict.fromkeys(format.weight_only for format in formats if format.plain)
        if missing := [format for format in plain if (layer, format) not in self._kept]:
            widths = [format.bits or 8 for format in missing]
            forms = Integers.of_widths(self.weight(layer), widths, self.site(layer).axis)
            self._kept |= {(layer, format): form for format, form in zip(missing, forms, strict=True)}

    def _mixed(self, layer: str, format: Format, channel_bits: Sequence[int]) -> Integers:
        """Every channel from the codes of its own width: scales are per channel, so that nothing is fitted anew."""
        site = self.site(layer)
        if why := unfit(format, site.weight.shape, site.axis):
            raise UsageError(f"{layer} cannot take {format.short}: {why}")
        shape = [1] * site.weight.ndim
        shape[site.axis] = -1
        widths = torch.tensor(channel_bits, device=site.weight.device).reshape(shape)
        codes = torch.zeros_like(site.weight, dtype=torch.int8)
        scale = torch.zeros_like(widths, dtype=torch.float32)
        zero = torch.zeros_like(scale)
        for bits in set(channel_bits):
            whole = self.quantized(layer, Format("int", bits))
            assert isinstance(whole, Integers)
            codes = torch.where(widths == bits, whole.codes, codes)
            scale = torch.where(widths == bits, whole.scale, scale)
            zero = torch.where(widths == bits, whole.zero, zero)
        return Integers(format, site.axis, site.weight.dtype, codes, scale, zero)

    def saved(self, layer: str, format: Format) -> int:
        """Bytes that entropy coding takes off the packed weight; 0 where plain codes are no longer."""
        if format.kind not in CODABLE:
            return 0
        site, codes = self.site(layer), self.quantized(layer, format).packed()["codes"].numpy()
        return max(0, len(codes) - coded_bytes(codes, format, site.weight.shape, site.axis))

    def dequantized(self, layer: str, format: Format) -> Tensor:
        """The weight under ``format``; the float one itself where it is kept."""
        return self.weight(layer) if format.kind == "float" else self.quantized(layer, format).dequantized()
