"""mpsearch: the best bit-width for every layer of an image generator, under a budget, with proof."""

from importlib.metadata import version

from mpsearch.api import allocate, estimate, estimate_strata, export, recover
from mpsearch.cost import Latency
from mpsearch.errors import (
    ArtifactError,
    CalibrationError,
    InfeasibleBudget,
    ModelError,
    MpsearchError,
    UsageError,
)
from mpsearch.export import load_packed, read_map, split
from mpsearch.layers import find_layers
from mpsearch.quant import quantized
from mpsearch.solving import frontier, search
from mpsearch.targets import smallest
from mpsearch.types import BitMap, Budget, Format, Layer, Layers, Point, QualityReport, Solution, Table, Target, Unit
from mpsearch.validation import validate, worst_case

__version__ = version("mpsearch")

__all__ = [
    "ArtifactError",
    "BitMap",
    "Budget",
    "CalibrationError",
    "Format",
    "InfeasibleBudget",
    "Latency",
    "Layer",
    "Layers",
    "ModelError",
    "MpsearchError",
    "Point",
    "QualityReport",
    "Solution",
    "Table",
    "Target",
    "Unit",
    "UsageError",
    "allocate",
    "estimate",
    "estimate_strata",
    "export",
    "find_layers",
    "frontier",
    "load_packed",
    "quantized",
    "read_map",
    "recover",
    "search",
    "smallest",
    "split",
    "validate",
    "worst_case",
]
