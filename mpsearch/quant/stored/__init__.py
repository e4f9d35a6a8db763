"""Stored forms of weights, a family a file."""

from collections.abc import Mapping

from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.quant.stored.codebook import Codebook
from mpsearch.quant.stored.floats import Eights, Halves
from mpsearch.quant.stored.form import Parts, QuantizedWeight
from mpsearch.quant.stored.integers import Integers, stored_widths
from mpsearch.quant.stored.low_rank import LowRank
from mpsearch.quant.stored.ternary import Ternary
from mpsearch.types import Format
from mpsearch.types.storage import unfit

FORMS: Mapping[str, type[QuantizedWeight]] = {
    "int": Integers,
    "low-rank": LowRank,
    "ternary": Ternary,
    "twn": Ternary,
    "palette": Codebook,
    "kernels": Codebook,
    "fp8": Eights,
    "fp16": Halves,
    "bf16": Halves,
}


def form_of(format: Format) -> type[QuantizedWeight]:
    """The stored form of a format that does not leave weights float."""
    return FORMS["low-rank" if format.rank else format.kind]


def quantize_weight(weight: Tensor, format: Format, axis: int) -> QuantizedWeight:
    """``weight`` in the stored form of ``format``, output channels along ``axis``.

    Raises:
        UsageError: the format is none for a weight of this shape, or leaves it float, or has no single width.
    """
    if why := unfit(format, weight.shape, axis):
        raise UsageError(f"{format}: {why}")
    if format.kind == "float" or format.channel_bits is not None:
        raise UsageError(f"{format} has no single width to quantize a whole weight with")
    return form_of(format).of(weight, format.weight_only, axis)


__all__ = [
    "FORMS",
    "Integers",
    "Parts",
    "QuantizedWeight",
    "form_of",
    "quantize_weight",
    "stored_widths",
]
