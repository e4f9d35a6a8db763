"""Grids, ranges and the context that puts a bit map on a generator."""

from mpsearch.quant.activations import Grid, InputGrid, Observed, input_errors, observe
from mpsearch.quant.bank import Recovered, WeightBank
from mpsearch.quant.context import applied, input_grid, input_grids, quantized, with_ranges
from mpsearch.quant.dynamic import DynamicGrid
from mpsearch.quant.stored import Integers, QuantizedWeight, quantize_weight

__all__ = [
    "DynamicGrid",
    "Grid",
    "InputGrid",
    "Integers",
    "Observed",
    "QuantizedWeight",
    "Recovered",
    "WeightBank",
    "applied",
    "input_errors",
    "input_grid",
    "input_grids",
    "observe",
    "quantize_weight",
    "quantized",
    "with_ranges",
]
