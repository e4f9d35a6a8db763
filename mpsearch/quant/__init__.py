"""Grids, ranges and the context that puts a bit map on a generator."""

from mpsearch.quant.activations import Grid, InputGrid, Observed, input_errors, observe
from mpsearch.quant.bank import Recovered, WeightBank
from mpsearch.quant.closeness import Closeness
from mpsearch.quant.context import applied, input_grid, input_grids, quantized, with_ranges
from mpsearch.quant.dynamic import DynamicGrid
from mpsearch.quant.stored import Integers, QuantizedWeight, quantize_weight
from mpsearch.quant.student import Student

__all__ = [
    "Closeness",
    "DynamicGrid",
    "Grid",
    "InputGrid",
    "Integers",
    "Observed",
    "QuantizedWeight",
    "Recovered",
    "Student",
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
