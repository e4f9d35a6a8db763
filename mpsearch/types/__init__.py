"""The nouns: frozen values, JSON both ways, no torch."""

from mpsearch.types.bitmap import BitMap
from mpsearch.types.budget import TOLERANCE, Budget, within
from mpsearch.types.format import FLOAT, FLOAT_BITS, Format, parse_formats
from mpsearch.types.frontier import Point
from mpsearch.types.layer import Layer, Layers, Unit
from mpsearch.types.pairs import Interactions, Pairs
from mpsearch.types.quality import Interval, QualityReport
from mpsearch.types.rules import Floors, Pins, Together, matching, ruled
from mpsearch.types.solution import Answer, Baseline, Choice, Limit, Measured, Problem, Solution
from mpsearch.types.table import Table

__all__ = [
    "FLOAT",
    "FLOAT_BITS",
    "TOLERANCE",
    "Answer",
    "Baseline",
    "BitMap",
    "Budget",
    "Choice",
    "Floors",
    "Format",
    "Interactions",
    "Interval",
    "Layer",
    "Layers",
    "Limit",
    "Measured",
    "Pairs",
    "Pins",
    "Point",
    "Problem",
    "QualityReport",
    "Solution",
    "Table",
    "Together",
    "Unit",
    "matching",
    "parse_formats",
    "ruled",
    "within",
]
