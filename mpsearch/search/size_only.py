"""``size-only``: most bits to the smallest layers, no sensitivity at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpsearch.search.ilp import Ilp
from mpsearch.search.lagrange import Lagrange
from mpsearch.types import FLOAT_BITS, Answer, Problem

MANY = 100  # units: equal ones by the hundred take an exact solver a minute
NEAR = 1e-3  # of the optimum, then


@dataclass(frozen=True)
class SizeOnly:
    """Every layer is as sensitive as every other and loses ``4^-bits``; the budget then favours small layers.

    The baseline that tells whether a sensitivity estimate is worth having.
    """

    def __call__(self, problem: Problem) -> Answer:
        bits = problem.bits() + np.array(
            [(f.act_bits or FLOAT_BITS) / 1e3 for f in problem.formats]
        )  # ties: more act bits
        values = np.where(problem.allowed, 4.0**-bits, np.nan)
        blind = replace(problem, damage=replace(problem.damage, values=values))
        solver = Ilp() if len(problem.units) <= MANY else Lagrange(gap=NEAR)
        return replace(solver(blind), method="size-only", bound=None)
