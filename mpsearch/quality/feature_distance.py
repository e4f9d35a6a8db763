"""How far features move when their picture is quantized, beside how far different pictures are apart."""

from __future__ import annotations

from torch import Tensor

from mpsearch.errors import CalibrationError
from mpsearch.quality.bootstrap import interval, resampled, share
from mpsearch.types import Interval


def feature_distance(
    before: Tensor, after: Tensor, draws: int = 500, seed: int = 0
) -> tuple[Interval, Interval, Interval | None]:
    """Squared Euclidean distances of features ``(n, D)``, each a mean over samples with its interval.

    Returns:
        (of pairs on the same input, of float pictures of different inputs, the former as a share of the latter); no
        share where the generator gives the same features for all inputs.
    """
    n = len(before)
    if n != len(after) or n < 2:
        raise CalibrationError(f"paired features need 2 samples or more of both, there are {n} and {len(after)}")
    before, after = before.double(), after.double()
    moved = (after - before).square().sum(1)
    length = (before - before.mean(0)).square().sum(1)
    apart = (n * length + length.sum()) / (n - 1)  # of one to all the others, on average
    pair, unlike = share(moved, draws, seed), share(apart, draws, seed)
    if unlike.value <= 0:
        return pair, unlike, None
    picks = resampled(n, draws, seed)
    ratios = moved[picks].mean(1) / apart[picks].mean(1).clamp_min(1e-300)
    return pair, unlike, interval(pair.value / unlike.value, ratios, n)
