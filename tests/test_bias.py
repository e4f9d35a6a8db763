"""Bias correction: channels keep the mean that they have in the float generator."""

import pytest
import torch
from conftest import error
from torch import nn

import mpsearch
from mpsearch import BitMap
from mpsearch.calibration import Calibration
from mpsearch.quant import WeightBank
from mpsearch.recovery import BiasCorrection
from mpsearch.recovery.trial import Trial


def shown(model, bitmap, batches):
    """Both answers that bias correction shows to its trial: all values alike, and weighed."""
    trial = Trial(model, BitMap(bitmap), WeightBank(model), Calibration.of(batches))
    found = []
    trial.show = found.append
    BiasCorrection()(trial)
    return trial, found


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(6), (0, 2, 3)),
    "group": (lambda: nn.GroupNorm(2, 6), (0, 2, 3)),
    "instance": (lambda: nn.InstanceNorm2d(6, affine=True), (0, 2, 3)),
}


def images(count=6, channels=3):
    return [(torch.rand(16, channels, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(count)]


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_without_a_bias_is_corrected_by_the_norm_behind_it(norm, snapshot):
    torch.manual_seed(0)
    make, dims = NORMS[norm]
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), make(), nn.PReLU(6)).eval()
    batches, bitmap = images(), {"0.weight": "w2"}
    shot = snapshot(model)
    trial, (alike, _) = shown(model, bitmap, batches)
    shot.check()
    assert alike.tensors.keys() == {"1.bias"}

    def means():
        return torch.cat([model[:2](*batch) for batch in trial.learning.batches]).mean(dims)

    with torch.no_grad():
        wanted = means()
        with mpsearch.quantized(model, bitmap, bank=trial.with_found(alike)):
            torch.testing.assert_close(means(), wanted, rtol=0, atol=1e-4)
        shift = alike.tensors["1.bias"] - model[1].bias
        with mpsearch.quantized(model, bitmap):
            torch.testing.assert_close(means() + shift, wanted, rtol=0, atol=1e-4)


def test_a_layer_norm_has_its_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.LayerNorm(6)).eval()
    batches = [(torch.rand(16, 5, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(4)]
    _, (alike, _) = shown(model, {"0.weight": "w2"}, batches)
    assert alike.tensors["1.bias"].shape == (6,)


def test_generators_without_norms_gain_on_unseen_inputs():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
    model = nn.Sequential(*layers, nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    bitmap = dict.fromkeys(("0.weight", "2.weight", "4.weight"), "w3")
    bank = mpsearch.recover(model, bitmap, images(), "bias")
    assert bank.tensors.keys() == {"0.bias", "2.bias", "4.bias"}
    unseen = images(8)[6:]
    assert error(model, bitmap, unseen, bank) < 0.6 * error(model, bitmap, unseen)


class Saturated(nn.Module):
    """Half of the picture is far down the flank of a tanh, where it does not matter how far."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.layer(x).tanh()


def test_what_a_tanh_cuts_off_does_not_count():
    model = Saturated().eval()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1))
        model.layer.bias.zero_()
    background = torch.zeros(2, 8, 8)
    background[0, :4], background[1, :4] = -8.0, 24.0  # there the rounding of 0.1 is a large error, elsewhere none
    batches = [
        (background + 0.3 * torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(seed)),)
        for seed in range(4)
    ]
    bitmap = {"layer.weight": "w2"}
    trial, (alike, weighed) = shown(model, bitmap, batches)
    assert alike.tensors["layer.bias"].abs() > 1
    assert weighed.tensors["layer.bias"].abs() < 0.5 * alike.tensors["layer.bias"].abs()
    pictures = [error(model, bitmap, batches, trial.with_found(own)) for own in (alike, weighed)]
    assert pictures[1] < 0.3 * pictures[0]


def test_the_same_seed_gives_the_same_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [(torch.rand(16, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(4)]
    (
        (_, first),
        (_, second),
    ) = (shown(model, {"0.weight": "w2", "2.weight": "w2"}, batches)[1] for _ in range(2))
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
