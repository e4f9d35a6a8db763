"""Grids, ranges and the context that puts a bit map on a generator."""

from mpsearch.quant.activations import ActivationRange, activation_errors, activation_ranges, quantize_activation
from mpsearch.quant.bank import WeightBank
from mpsearch.quant.context import applied, quantized
from mpsearch.quant.weights import QuantizedWeight, quantize_weight

__all__ = [
    "ActivationRange",
    "QuantizedWeight",
    "WeightBank",
    "activation_errors",
    "activation_ranges",
    "applied",
    "quantize_activation",
    "quantize_weight",
    "quantized",
]
