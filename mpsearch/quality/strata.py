"""Paired error of every class or timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import share
from mpsearch.types import Interval


def paired_strata(
    before: Sequence[Tensor], after: Sequence[Tensor], strata: Mapping[str, Tensor], draws: int = 500, seed: int = 0
) -> dict[str, Interval]:
    """Mean squared error of the pairs in the rows of every stratum.

    Empty where there is one stratum only, or fewer than two pairs in each on average: those say nothing.
    """
    pairs = zip(before, after, strict=True)
    errors = torch.cat([(b - a).double().square().reshape(len(b), -1).mean(1).cpu() for b, a in pairs])
    if not 1 < len(strata) <= len(errors) / 2:
        return {}
    return {name: share(errors[rows], draws, seed) for name, rows in strata.items()}
