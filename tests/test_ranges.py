"""Where the static ranges of activations lie, and what no format rounds."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mpsearch
from mpsearch import BitMap, UsageError
from mpsearch.api import make_subject
from mpsearch.calibration import Calibration
from mpsearch.config import load_config
from mpsearch.layers import find_layers
from mpsearch.quant import InputGrid, observe
from mpsearch.run import Run
from mpsearch.types import Layers, Range


def seen(x):
    """What a linear layer with one input reads."""
    calibration = Calibration.of([(part,) for part in x.reshape(-1, 1).split(1000)])
    return observe(nn.Linear(1, 1), calibration, {"weight": ["weight"]}, {"weight": ()})[1]["weight"]


def tailed(count=6000):
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return x * x.abs() + 0.2


@pytest.mark.parametrize("bits", [4, 8])
def test_ranges_may_be_the_extremes_or_hold_most_values(bits):
    x = tailed()
    (whole,) = seen(x).grid(bits, "minmax").ranges
    assert whole == Range(x.min().item(), x.max().item())
    for share in (99.0, 99.9):
        (span,) = seen(x).grid(bits, share).ranges
        assert ((x >= span.low) & (x <= span.high)).double().mean().item() == pytest.approx(share / 100, abs=5e-4)
        assert (x < span.low).sum().item() == pytest.approx((x > span.high).sum().item(), abs=1)
    assert seen(x).grid(bits, 100).ranges == (whole,)
    assert seen(x.abs() + 1).grid(bits, 99).ranges[0].low == 0, "zero stays inside"


def test_every_fit_is_best_at_something():
    x = tailed()

    def error(bits, fit):
        return (seen(x).grid(bits, fit)(x) - x).square().mean().item()

    def worst(fit):
        return (seen(x).grid(8, fit)(x) - x).abs().max().item()

    assert error(4, "mse") < 0.9 * min(error(4, "minmax"), error(4, 99.0))
    assert worst("minmax") < 0.2 * worst(99.0)
    assert error(4, 99.0) < 0.8 * error(4, "minmax")


def test_the_choice_travels_from_the_call_to_the_map(deconv):
    model, batches = deconv
    ranges = {}
    for fit in ("mse", "minmax", 99.0):
        subject = make_subject(model, batches, activation_ranges=fit)
        assert {layer.range_fit for layer in subject.layers} == {fit}
        assert Layers.from_json(json.loads(json.dumps(subject.layers.to_json()))) == subject.layers
        ranges[fit] = subject.with_ranges(BitMap({"main.3.weight": "a4"})).ranges["main.3.weight"][0].high
    found = mpsearch.allocate(model, batches, ["bops<=20%"], ["w4a4"], effort="fast", activation_ranges="minmax")
    assert found.bitmap.ranges["main.3.weight"][0].high == ranges["minmax"]
    assert ranges["mse"] < ranges["minmax"]
    assert ranges[99.0] < ranges["minmax"]
    for fit in ("max", 0.999, True, None):
        with pytest.raises(UsageError, match=r"activation_ranges is .*: use mse, minmax, or the percentage inside"):
            find_layers(model, batches[0], activation_ranges=fit)


def test_what_was_measured_with_other_ranges_is_measured_again(tmp_path):
    small = {"calibration": 8, "heldback": 8, "distances": 8, "batch": 4}

    def error(**layers):
        chosen = {"include": ["up8.conv*"], **layers}
        run = Run(load_config(None, samples=small, layers=chosen, formats=["w4a4"]), tmp_path)
        return run.subject.error(BitMap({"up8.conv1.weight": "a4"})).value

    first = error()
    assert error(activation_ranges="minmax") != first
    assert error(channel_ranges=["*"]) != first
    assert error() == first


@pytest.mark.parametrize("activation", [lambda x: F.leaky_relu(x, 0.2), F.silu], ids=["leaky relu", "silu"])
@pytest.mark.parametrize("fit", ["mse", "minmax", 99.9])
def test_ranges_behind_one_sided_activations_are_one_sided(activation, fit):
    x = activation(torch.randn(6000, generator=torch.Generator().manual_seed(0)) * 3)
    grid = seen(x).grid(4, fit)
    ((low, high, _),) = grid.ranges
    assert x.min() <= low < 0 < high
    assert high > 3 * -low
    even = InputGrid((Range(-high, high),), 4)
    assert (grid(x) - x).square().mean() < 0.5 * (even(x) - x).square().mean()


class Normed(nn.Module):
    """Attention written out, and every kind of normalisation, with scales that are matrices among them."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.softmax = nn.Softmax(-1)
        self.norms = nn.ModuleList([nn.LayerNorm([5, 6]), nn.GroupNorm(1, 5), nn.BatchNorm1d(5), nn.RMSNorm([5, 6])])
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        shares = self.softmax(self.query(x) @ self.key(x).mT)
        h = x + shares @ self.value(x)
        for norm in self.norms:
            h = norm(h)
        return self.out(h).tanh()


def test_softmax_and_normalisations_stay_float():
    torch.manual_seed(0)
    model, batches = Normed().eval(), [(torch.randn(4, 5, 6),)]
    layers = find_layers(model, batches[0])
    assert [layer.name for layer in layers] == [f"{name}.weight" for name in ("query", "key", "value", "out")]
    ran = []
    keep = [model.softmax, *model.norms]
    with mpsearch.quantized(model, dict.fromkeys((layer.name for layer in layers), "w4a4"), batches), torch.no_grad():
        for module in keep:
            module.register_forward_hook(lambda module, args, output: ran.append((module, args[0], output)))
        model(*batches[0])
        for module in keep:
            module._forward_hooks.clear()
    assert [module for module, *_ in ran] == keep
    for module, read, output in ran:
        assert torch.equal(output, module(read))
        assert len(output.unique()) > 16, "more than four bits tell apart"


def test_maps_from_elsewhere_get_the_ranges_of_the_calibration_inputs(tmp_path):
    samples = {"calibration": 8, "heldback": 8, "distances": 40, "batch": 8}
    run = Run(load_config(samples=samples, layers={"activation_ranges": "minmax"}), tmp_path)
    first, second = (layer.name for layer in run.layers[:2])
    own = (Range(-1.0, 1.0),)
    found = run.addressed(BitMap({first: "w4a8", second: "w4a8"}, {first: own}), "theirs")
    assert found.ranges == {first: own, second: run.subject.with_ranges(BitMap({second: "w4a8"})).ranges[second]}
    rows = run.compare(
        {"theirs": BitMap({second: "w4a8"}), "the same": run.subject.with_ranges(BitMap({second: "w4a8"}))}
    )
    assert rows["theirs"]["quality"]["mse"] == rows["the same"]["quality"]["mse"]
