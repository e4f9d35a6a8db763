"""Grids, ranges and the context that puts a bit map on a generator."""

from mpsearch.quant.activations import InputGrid, Observed, input_errors, observe
from mpsearch.quant.bank import WeightBank
from mpsearch.quant.context import applied, quantized
from mpsearch.quant.weights import QuantizedWeight, quantize_weight

__all__ = [
    "InputGrid",
    "Observed",
    "QuantizedWeight",
    "WeightBank",
    "applied",
    "input_errors",
    "observe",
    "quantize_weight",
    "quantized",
]
