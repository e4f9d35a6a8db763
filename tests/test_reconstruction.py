"""Learned rounding: which modules are blocks, what counts, and what is gained."""

import pytest
import torch
from conftest import error
from torch import nn

import mpsearch
from mpsearch import UsageError
from mpsearch.recovery.blocks import blocks_of
from mpsearch.recovery.reconstruction import _importance


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(Residual(8), Residual(8))
        self.norm = nn.BatchNorm2d(8)
        self.outlet = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.outlet(self.norm(self.body(self.inlet(x).relu())).relu()).tanh()


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    batches = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(10)]
    return model, batches


MAP = dict.fromkeys(("inlet.weight", "outlet.weight"), "w3") | {
    f"body.{block}.{layer}.weight": "w3" for block in (0, 1) for layer in ("first", "second")
}


@pytest.mark.parametrize(("method", "share"), [("adaround", 1.0), ("blocks", 0.9)])
def test_it_gains_on_unseen_inputs(net, method, share, snapshot):
    model, batches = net
    shot = snapshot(model)
    bank = mpsearch.recover(model, MAP, batches[:8], method)
    shot.check()
    assert error(model, MAP, batches[8:], bank) < share * error(model, MAP, batches[8:])
    again = mpsearch.recover(model, MAP, batches[:8], method)
    for layer, text in MAP.items():
        stored = [own.quantized(layer, mpsearch.Format.parse(text)) for own in (bank, again)]
        assert torch.equal(stored[0].codes, stored[1].codes)


def test_blocks_are_the_smallest_modules_with_several_layers_but_not_all():
    places = [*MAP]
    called = ["inlet", "body.0.first", "body.0.second", "body.0", "body.1", "body", "outlet", ""]
    assert blocks_of(places, called) == ["body.0", "body.1"]
    assert blocks_of(places, [path for path in called if path != "body.1"]) == ["body.0"]
    assert blocks_of(places, ["inlet", "body", ""]) == ["body"]
    assert blocks_of(["net.0.weight", "net.2.weight"], ["net", "net.0", "net.2", ""]) == [], "all of them are no block"


def test_what_an_output_counts_is_the_squared_gradient_of_the_images():
    output = torch.tensor([[1.0, 2.0, -3.0]], requires_grad=True)
    images = output * torch.tensor([2.0, 0.0, 0.5])
    (found,) = _importance(images, [output], 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor([[4.0, 0.0, 0.25]]))


def test_zero_points_and_groups_are_rounded_too(net):
    model, batches = net
    bitmap = dict.fromkeys(MAP, "w3z") | {"body.0.first.weight": "w3g12", "body.1.second.weight": "w1"}
    plain = mpsearch.quant.WeightBank(model)
    bank = mpsearch.recover(model, bitmap, batches[:8], "adaround", steps=60)
    changed = 0
    for layer, text in bitmap.items():
        format = mpsearch.Format.parse(text)
        own, before = bank.quantized(layer, format), plain.quantized(layer, format)
        low, high = own.limits
        assert ((own.codes >= low) & (own.codes <= high)).all()
        assert torch.equal(own.scale, before.scale)
        changed += (own.codes != before.codes).sum().item()
    assert changed > 20


def test_bad_options_are_one_line(net):
    model, batches = net
    with pytest.raises(
        UsageError, match="blocks needs steps, probes and lessons of 1 or more, rate and strength above 0"
    ):
        mpsearch.recover(model, MAP, batches, "blocks", lessons=0)
