"""The nouns: frozen values, JSON both ways, no torch."""

from mpsearch.types.bitmap import BitMap, Range, Ranges
from mpsearch.types.budget import TOLERANCE, Budget, within
from mpsearch.types.format import FLOAT, FLOAT_BITS, Format, activations_of, parse_formats
from mpsearch.types.frontier import Point
from mpsearch.types.layer import Layer, Layers, RangeFit, Unit
from mpsearch.types.measured import Measured
from mpsearch.types.pairs import Interactions, Pairs
from mpsearch.types.problem import Answer, Choice, Limit, Problem
from mpsearch.types.quality import Figure, Interval, Paired, QualityReport, decibels, gap_db
from mpsearch.types.rules import Floors, Pins, Together, matching, ruled
from mpsearch.types.solution import Baseline, Solution
from mpsearch.types.table import Table
from mpsearch.types.target import Reached, Target

__all__ = [
    "FLOAT",
    "FLOAT_BITS",
    "TOLERANCE",
    "Answer",
    "Baseline",
    "BitMap",
    "Budget",
    "Choice",
    "Figure",
    "Floors",
    "Format",
    "Interactions",
    "Interval",
    "Layer",
    "Layers",
    "Limit",
    "Measured",
    "Paired",
    "Pairs",
    "Pins",
    "Point",
    "Problem",
    "QualityReport",
    "Range",
    "RangeFit",
    "Ranges",
    "Reached",
    "Solution",
    "Table",
    "Target",
    "Together",
    "Unit",
    "activations_of",
    "decibels",
    "gap_db",
    "matching",
    "parse_formats",
    "ruled",
    "within",
]
