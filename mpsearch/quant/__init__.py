"""Grids, ranges and the context that puts a bit map on a generator."""

from mpsearch.quant.activations import (
    ActivationRange,
    InputGrid,
    Observed,
    activation_errors,
    input_errors,
    observe,
    quantize_activation,
)
from mpsearch.quant.bank import WeightBank
from mpsearch.quant.context import applied, quantized
from mpsearch.quant.weights import QuantizedWeight, quantize_weight

__all__ = [
    "ActivationRange",
    "InputGrid",
    "Observed",
    "QuantizedWeight",
    "WeightBank",
    "activation_errors",
    "applied",
    "input_errors",
    "observe",
    "quantize_activation",
    "quantize_weight",
    "quantized",
]
