"""Put a bit map on a generator and take it off again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.layers import input_parts
from mpsearch.model import device_of, inputs_mapped, substituted
from mpsearch.model.calls import modules_called
from mpsearch.quant.activations import Grid, InputGrid, observe
from mpsearch.quant.bank import WeightBank
from mpsearch.quant.dynamic import DynamicGrid
from mpsearch.types import BitMap, Format, Ranges


@contextmanager
def quantized(
    model: nn.Module,
    bitmap: Mapping[str, Format | str],
    batches: Iterable[Any] | None = None,
    bank: WeightBank | None = None,
) -> Iterator[nn.Module]:
    """Run ``model`` as ``bitmap`` says; on leaving, also by an error, it is bit for bit what it was.

    Args:
        model: any generator. The same object is yielded.
        bitmap: layer name → format; layers that are not named stay float.
        batches: inputs to fit activation ranges on; only needed for a map with activation bits and no ranges.
        bank: quantized weights, those of :func:`mpsearch.recover`; by default the nearest ones.

    Raises:
        UsageError: a name that the model lacks, or activation bits without ranges and without batches.

    Example:
        >>> with quantized(generator, solution.bitmap) as small:
        ...     images = small(latents)
    """
    bitmap = bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap)
    bank = bank or WeightBank(model)
    with applied(model, with_ranges(model, bitmap, batches, bank), bank):
        yield model


def with_ranges(
    model: nn.Module, bitmap: BitMap, batches: Iterable[Any] | Calibration | None, bank: WeightBank
) -> BitMap:
    """The map under first names, with every activation range it needs, fitted on ``batches`` where it has none.

    Raises:
        UsageError: a range is missing and there are no batches, or a layer with activations is not called on them.
    """
    bitmap = bank.normalised(bitmap)
    missing = {name: f.act_bits for name, f in bitmap.items() if f.act_bits and f.ranged and name not in bitmap.ranges}
    moving = [name for name, f in bitmap.items() if f.act_bits and not f.ranged]
    if missing and batches is None:
        raise UsageError(f"{len(missing)} layers, {next(iter(missing))} first, lack an activation range: pass batches=")
    if batches is None or not (missing or moving):
        return bitmap
    calibration = batches if isinstance(batches, Calibration) else Calibration.of(batches, device_of(model))
    if moving:
        _refuse_uncalled(model, calibration, moving, bank)
    parts = input_parts(model, calibration.batches[0], missing)
    _, seen = observe(model, calibration, {name: bank.site(name).places for name in missing}, parts)
    fitted = {name: seen[name].grid(bits).ranges for name, bits in missing.items()}
    return bitmap.with_ranges({**bitmap.ranges, **fitted})


def _refuse_uncalled(model: nn.Module, calibration: Calibration, names: Iterable[str], bank: WeightBank) -> None:
    seed, args = calibration.run(0)
    called = modules_called(model, args, seed)
    for name in names:
        if not any(place.rpartition(".")[0] in called for place in bank.site(name).places):
            raise UsageError(f"{name} is never called on these inputs: its activations cannot be quantized")


@contextmanager
def applied(model: nn.Module, bitmap: BitMap, bank: WeightBank) -> Iterator[dict[str, Tensor]]:
    """As :func:`quantized`, for a map that has its ranges, with weights from a bank that outlives the context.

    Yields the weights in place, by layer, those that stay float left out.
    """
    values = {layer: bank.dequantized(layer, format) for layer, format in bitmap.items() if format.kind != "float"}
    weights = {place: value for layer, value in values.items() for place in bank.site(layer).places}
    with substituted(model, {**weights, **bank.tensors}), inputs_mapped(model, input_grids(bitmap, bank)):
        yield values


def input_grids(bitmap: BitMap, bank: WeightBank, layers: Collection[str] | None = None) -> dict[str, Grid]:
    """How the input of every place of a quantized activation is rounded, of all layers or of those asked for."""
    found: dict[str, Grid] = {}
    for layer, format in bitmap.items():
        if format.act_bits and (layers is None or layer in layers):
            site = bank.site(layer)
            ranges = bank.ranges[layer] if layer in bank.ranges else bitmap.ranges.get(layer, ())
            found.update(dict.fromkeys(site.places, input_grid(format, ranges, site.input_axis)))
    return found


def input_grid(format: Format, ranges: Ranges, axis: int) -> Grid:
    """How activations are rounded in a format that quantizes them.

    Args:
        format: the format.
        ranges: those of the layer, where the format needs some.
        axis: of the channels.
    """
    assert format.act_bits is not None
    if format.ranged:
        return InputGrid(ranges, format.act_bits, axis)
    return DynamicGrid(format.act_bits, format.act, axis)
