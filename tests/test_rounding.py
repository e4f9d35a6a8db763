"""Errors of rounding on many grids: from the values in order as from each of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.quant.rounding import Ordered, one_by_one, rounding_errors, searched


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 255), st.booleans(), st.integers(0, 2**16))
def test_both_ways_give_the_squared_error_of_every_grid(values, levels, shifted, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, values, generator=generator)
    steps = torch.rand(3, 4, generator=generator) * 4 / levels + 1e-3
    low = -torch.randint(0, levels + 1, (3, 4), generator=generator).float() if shifted else 0.0
    zero = low[:, :, None] if shifted else torch.zeros(1)
    wide, size = rows[:, None].double(), steps[:, :, None].double()
    exact = (wide - size * (wide / size).round().clamp(zero, zero + levels)).square()
    for found in (one_by_one(rows, levels, steps, low), Ordered(rows)(levels, steps, low)):
        torch.testing.assert_close(found.double(), exact.sum(2), rtol=1e-4, atol=1e-6 * float(wide.square().sum()))


def test_few_levels_among_many_values_are_searched():
    assert [searched(1000, levels) for levels in (1, 3, 7, 255)] == [True, True, False, False]
    rows = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([[0.1, 1.0], [0.5, 2.0]])
    found = rounding_errors(rows, 3)(3, steps, -1.0)
    assert found.dtype == torch.float64, "sums of thousands of squares that nearly cancel"
    assert found.flatten().tolist() == pytest.approx(one_by_one(rows, 3, steps, -1.0).flatten().tolist(), rel=1e-5)
