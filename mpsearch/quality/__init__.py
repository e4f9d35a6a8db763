"""Quality of a quantized generator against the float one. One measure a file; ``MEASURES`` names those of features."""

from mpsearch.quality.feature_distance import feature_distance
from mpsearch.quality.figures import MEASURES, distances, figures
from mpsearch.quality.paired import paired_floor, paired_quality
from mpsearch.quality.reference import Reference
from mpsearch.quality.ssim import ssim
from mpsearch.quality.strata import paired_strata

__all__ = [
    "MEASURES",
    "Reference",
    "distances",
    "feature_distance",
    "figures",
    "paired_floor",
    "paired_quality",
    "paired_strata",
    "ssim",
]
