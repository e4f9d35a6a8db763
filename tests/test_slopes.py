"""First-order changes of the error of a whole map."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch import ModelError
from mpsearch.api import make_subject
from mpsearch.model import substituted
from mpsearch.sensitivity import channel_slopes, slopes
from mpsearch.types import BitMap, Unit, parse_formats

FORMATS = parse_formats(["w2", "w4", "w6"])


def error_between(subject, bitmap, name, format, step):
    """Error of the map with one weight moved by ``step`` of the way to another format."""
    bank = subject.bank
    weights = {layer.name: bank.dequantized(layer.name, bitmap[layer.name]) for layer in subject.layers}
    weights[name] = weights[name] + step * (bank.dequantized(name, format) - weights[name])
    places = {place: weights[key] for key in weights for place in bank.site(key).places}
    with substituted(subject.model, places):
        found = subject.images(BitMap({}))
    squares = [(a - b).double().square().flatten(1).mean(1) for a, b in zip(found, subject.reference, strict=True)]
    return torch.cat(squares).mean().item()


def test_slopes_are_derivatives(case, snapshot):
    model, batches = case
    model = model.double()
    batches = [tuple(a.double() if a.is_floating_point() else a for a in batch) for batch in batches]
    shot = snapshot(model)
    subject = make_subject(model, batches)
    bitmap = BitMap({layer.name: "w4" for layer in subject.layers})
    found = slopes(subject, bitmap, FORMATS)
    shot.check()
    step = 1e-4
    size = np.abs(found).max()
    for row, layer in enumerate(subject.layers):
        assert found[row, 1] == 0
        for column in (0, 2):
            ends = [error_between(subject, bitmap, layer.name, FORMATS[column], sign * step) for sign in (1, -1)]
            assert found[row, column] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02, abs=1e-3 * size)


class Straight(nn.Module):
    """Linear to the end, so that only rounding is not: the change of the error is exact to second order."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.two(self.one(z)).reshape(-1, 2, 2, 2)


def test_activations_too():
    torch.manual_seed(0)
    subject = make_subject(Straight(), [(torch.randn(32, 4),)])
    formats = parse_formats(["w4", "w4a8", "w4a4"])
    names = [layer.name for layer in subject.layers]
    bitmap = BitMap({names[0]: "w4a4", names[1]: "w4a8"})
    found = slopes(subject, bitmap, formats)
    for column, format in enumerate(formats):
        other = BitMap(dict(bitmap) | {names[1]: format})
        step = [a - b for a, b in zip(subject.images(other), subject.images(bitmap), strict=True)]
        curvature = torch.cat(step).double().square().mean().item()
        change = subject.error(other).value - subject.error(bitmap).value
        assert found[1, column] + curvature == pytest.approx(change, rel=1e-3, abs=1e-9)


def test_slopes_are_measured_once(deconv):
    subject = make_subject(*deconv)
    bitmap = BitMap({layer.name: "w4" for layer in subject.layers})
    found = slopes(subject, bitmap, FORMATS)
    again = make_subject(*deconv, memo=subject.memo)
    again.model.forward = lambda *args: pytest.fail("measured again")
    assert (slopes(again, bitmap, FORMATS) == found).all()


def test_no_gradient_is_an_error(deconv):
    model, batches = deconv
    forward = model.forward
    model.forward = lambda *args: torch.no_grad()(forward)(*args)
    subject = make_subject(model, batches)
    with pytest.raises(ModelError, match="perturbation"):
        slopes(subject, BitMap({subject.layers[0].name: "w4"}), FORMATS)


def test_slopes_of_channels_make_up_those_of_their_layer(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    subject = make_subject(model, batches)
    bitmap = BitMap({layer.name: "w4" for layer in subject.layers})
    units = [Unit(layer.name, (c,)) for layer in subject.layers for c in range(layer.channels)]
    whole, parts = slopes(subject, bitmap, FORMATS), channel_slopes(subject, bitmap, units, FORMATS)
    shot.check()
    assert parts.shape == (len(units), len(FORMATS))
    for row, layer in enumerate(subject.layers):
        own = parts[[unit.layer == layer.name for unit in units]]
        assert own.sum(axis=0) == pytest.approx(whole[row], rel=1e-4, abs=1e-7)
