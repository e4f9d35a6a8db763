"""Recovery ``scales``: scales of weights and ranges of activations, chosen for what layers give."""

from typing import get_args

import pytest
import torch
from conftest import error
from torch import nn

import mpsearch
from mpsearch import UsageError
from mpsearch.quant import WeightBank
from mpsearch.recovery.scales import Rule

MAP = {"0.weight": "w3a8", "2.weight": "w3a6", "4.weight": "w4"}


def loud():
    """A generator whose inputs differ a hundredfold: the rounding of some weights matters far more than that of
    others, which the squared error of the weights does not see."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.LeakyReLU(0.1), nn.Conv2d(12, 3, 1)]
    size = torch.logspace(-1, 1, 8)[:, None, None]
    batches = [(torch.randn(8, 8, 10, 10, generator=torch.Generator().manual_seed(seed)) * size,) for seed in range(9)]
    return nn.Sequential(*layers).eval(), batches


def test_scales_for_the_output_are_better_on_unseen_inputs_and_leave_the_model_alone(snapshot):
    model, batches = loud()
    shot = snapshot(model)
    bank = mpsearch.recover(model, MAP, batches[:6], "scales")
    shot.check()
    plain = mpsearch.BitMap.from_json(mpsearch.BitMap(MAP).to_json())
    unseen = batches[6:]
    assert error(model, plain, unseen, bank) < 0.95 * error(model, plain, unseen)
    again = mpsearch.recover(model, MAP, batches[:6], "scales")
    for layer in MAP:
        format = mpsearch.Format.parse(MAP[layer])
        assert torch.equal(bank.quantized(layer, format).codes, again.quantized(layer, format).codes)
    assert again.ranges == bank.ranges


@pytest.mark.parametrize("rule", get_args(Rule))
def test_no_rule_makes_it_worse_on_what_is_kept_back(rule):
    model, batches = loud()
    bank = mpsearch.recover(model, MAP, batches, "scales", rule=rule, lessons=2)
    whole = mpsearch.quant.with_ranges(model, mpsearch.BitMap(MAP), batches, WeightBank(model))
    assert error(model, whole, batches[-3:], bank) <= error(model, whole, batches[-3:]) * (1 + 1e-6)


def test_every_scale_is_one_of_the_candidates_of_its_channel():
    model, batches = loud()
    bank = mpsearch.recover(model, {"2.weight": "w2"}, batches, "scales", rule="minmax")
    stored = bank.quantized("2.weight", mpsearch.Format.parse("w2"))
    nearest = WeightBank(model).quantized("2.weight", mpsearch.Format.parse("w2"))
    peak = model[2].weight.detach().abs().amax((1, 2, 3), keepdim=True)
    assert torch.equal(stored.scale, peak) or torch.equal(stored.scale, nearest.scale)
    assert (peak > nearest.scale).all()


@pytest.mark.parametrize("text", ["w1", "w2z", "w3", "w3g36", "w2zg36", "w[2*4,3*8]"])
def test_integers_of_every_kind_are_searched(text):
    model, batches = loud()
    bitmap, format = {"2.weight": text}, mpsearch.Format.parse(text)
    bank = mpsearch.recover(model, bitmap, batches[:6], "scales")
    stored = bank.quantized("2.weight", format)
    assert not torch.equal(stored.scale, WeightBank(model).quantized("2.weight", format).scale)
    assert error(model, bitmap, batches[6:], bank) < error(model, bitmap, batches[6:])
    packed = stored.packed()
    back = type(stored).unpacked(packed, format, model[2].weight.shape, 0, torch.float32)
    assert torch.equal(back.dequantized(), stored.dequantized())


def test_a_range_that_is_far_too_wide_is_narrowed():
    model, batches = loud()
    fitted = mpsearch.quant.with_ranges(model, mpsearch.BitMap({"2.weight": "w8a4"}), batches, WeightBank(model))
    (low, high, channels) = fitted.ranges["2.weight"][0]
    wide = fitted.with_ranges({"2.weight": (mpsearch.types.Range(low, 4 * high, channels),)})
    bank = mpsearch.recover(model, wide, batches, "scales")
    assert bank.ranges["2.weight"][0].high < 2 * high
    assert error(model, wide, batches[-2:], bank) < 0.3 * error(model, wide, batches[-2:])


def test_bad_options_are_one_line():
    model, batches = loud()
    with pytest.raises(UsageError, match="scales needs lessons of 1 or more, not 0"):
        mpsearch.recover(model, MAP, batches, "scales", lessons=0)
    with pytest.raises(UsageError, match="rule is 'best'"):
        mpsearch.recover(model, MAP, batches, "scales", rule="best")
