"""Quality of a quantized generator against the float one."""

from mpsearch.quality.distances import Reference, distances
from mpsearch.quality.paired import paired_quality
from mpsearch.quality.ssim import ssim

__all__ = ["Reference", "distances", "paired_quality", "ssim"]
