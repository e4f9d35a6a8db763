"""Equalisation: channels are scaled where it changes nothing, and what comes after starts from the scaled weights."""

import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn
from torch.nn.utils import parametrizations

import mpsearch
from mpsearch import BitMap, UsageError
from mpsearch.calibration import Calibration
from mpsearch.export import load_packed
from mpsearch.model import substituted
from mpsearch.quant import Recovered, Student, WeightBank, with_ranges
from mpsearch.recovery import Equalise
from mpsearch.recovery.scaling import Pair, Scaling
from mpsearch.recovery.trial import Trial


class Functional(nn.Module):
    """Functional activations, a spectral norm, nearest upsampling, and a residual that must not be scaled."""

    def __init__(self):
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + F.leaky_relu(self.second(F.interpolate(h, scale_factor=1)), 0.2)
        return self.third(h)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        h = self.first(x).relu()
        return self.left(h) + self.right(h)


GROUPED = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
MODELS = {
    "prelu": (lambda: [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 3, 3)], [("0", "2.weight")]),
    "norm": (
        lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2)],
        [("1", "3.weight")],
    ),
    "groups": (
        lambda: [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.LeakyReLU(),
                 nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2)],
        [("0", "2.weight"), ("2", "4.weight"), ("4", "6.weight")],
    ),
    "pooled": (
        lambda: [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 3, 1)],
        [("0", "3.weight")],
    ),
    "silu": (lambda: [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3)], []),
    "instance": (lambda: [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3)], []),
}  # fmt: skip


def inputs(count=4):
    """Smooth pictures: in noise, nearest rounding is the best there is."""
    noise = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return [(3 * F.avg_pool2d(own, 5, 1),) for own in noise]


def trial_of(model, text="w4", batches=None, bank=None, only=None):
    layers = mpsearch.find_layers(model, (batches or inputs())[0])
    bitmap = BitMap({layer.name: text for layer in layers if only is None or layer.name in only})
    bank = bank or WeightBank(model)
    calibration = Calibration.of(batches or inputs())
    return Trial(model, with_ranges(model, bitmap, calibration, bank), bank, calibration)


@pytest.mark.parametrize("name", MODELS)
def test_the_pairs_are_found_and_their_scales_cancel(name, snapshot):
    torch.manual_seed(0)
    make, expected = MODELS[name]
    model = nn.Sequential(*make()).eval()
    shot = snapshot(model)
    scaling = Scaling(trial := trial_of(model))
    pairs = scaling.pairs()
    shot.check()
    assert pairs == [Pair(*pair) for pair in expected]
    generator = torch.Generator().manual_seed(1)
    scales = {
        pair: torch.rand(scaling.readers[pair.reader].in_channels, generator=generator) * 4 + 0.1 for pair in pairs
    }
    changed = scaling.changed(scales)
    with substituted(model, changed.floats), torch.no_grad():
        for batch, image in zip(trial.learning.batches, trial.expected, strict=True):
            torch.testing.assert_close(model(*batch), image, rtol=1e-4, atol=1e-5)
    for pair, scale in scales.items():
        if pair.giver + ".bias" in changed.tensors:
            bias = model.get_parameter(pair.giver + ".bias")
            torch.testing.assert_close(changed.tensors[pair.giver + ".bias"], bias / scale)


def test_functional_activations_are_seen_and_residuals_are_not_scaled():
    torch.manual_seed(0)
    scaling = Scaling(trial_of(Functional().eval()))
    assert scaling.pairs() == []  # ``h`` is read twice, and ``third`` reads a sum
    torch.manual_seed(0)
    assert Scaling(trial_of(TwoReaders().eval())).pairs() == []


def test_layers_that_stay_float_take_no_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    assert Scaling(trial_of(model, only=["2.weight"])).pairs() == []
    assert Scaling(trial_of(model, only=["0.weight", "2.weight"])).pairs() == [Pair("0", "2.weight")]


def unbalanced():
    """A generator, and the same one with its hidden channels scaled so that its reader has few levels for most."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.Conv2d(16, 3, 3)).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    gains = 2 ** torch.linspace(-4, 4, 16)
    with torch.no_grad():
        models[1][0].weight.mul_(gains[:, None, None, None])
        models[1][0].bias.mul_(gains)
        models[1][2].weight.div_(gains[:, None, None])
    return models


def test_what_was_thrown_off_balance_is_brought_back_on_unseen_inputs(snapshot):
    balanced, model = unbalanced()
    batches, unseen = inputs(8), inputs(12)[8:]
    errors = {}
    for name, own in (("balanced", balanced), ("unbalanced", model)):
        bitmap = with_ranges(own, BitMap({"0.weight": "w4", "2.weight": "w4a6"}), batches, WeightBank(own))
        errors[name] = error(own, bitmap, unseen)
    shot = snapshot(model)
    bank = mpsearch.recover(model, bitmap, batches, "equalise")
    shot.check()
    assert error(model, bitmap, unseen, bank) < 1.3 * errors["balanced"] < 0.2 * errors["unbalanced"]


@pytest.fixture
def equalised():
    _, model = unbalanced()
    batches = inputs(8)
    bitmap = with_ranges(model, BitMap({"0.weight": "w4", "2.weight": "w4a8"}), batches, WeightBank(model))
    return model, bitmap, batches, mpsearch.recover(model, bitmap, batches, "equalise")


def test_the_packed_file_holds_the_scaled_generator(equalised, tmp_path):
    model, bitmap, batches, bank = equalised
    files = mpsearch.export(model, bitmap, tmp_path, batches, bank=bank)
    loaded = load_packed(files["packed"], unbalanced()[0])
    with mpsearch.quantized(model, mpsearch.read_map(files["json"]), bank=bank), torch.no_grad():
        torch.testing.assert_close(loaded(*batches[0]), model(*batches[0]), rtol=1e-5, atol=1e-6)


def test_training_starts_from_the_scaled_weights(equalised):
    model, bitmap, batches, bank = equalised
    assert bank.floats.keys() == {"0.weight", "0.bias", "2.weight"}
    student = Student(model, bitmap, bank)
    for layer in ("0.weight", "2.weight"):
        stored = bank.quantized(layer, bitmap[layer])
        assert (stored.dequantized() - model.get_parameter(layer)).abs().max() > 3 * stored.scale.max()
        exact = bank.floats[layer] / stored.scale
        inside = exact.abs() <= 7.5
        torch.testing.assert_close(student.codes[layer][inside], exact[inside], rtol=1e-4, atol=1e-4)
    unseen = inputs(12)[8:]
    trained = mpsearch.recover(model, bitmap, batches, "distil", bank=bank, steps=60)
    assert trained.floats == bank.floats
    assert error(model, bitmap, unseen, trained) < error(model, bitmap, unseen, bank)


@pytest.mark.parametrize(("method", "options"), [("bias", {}), ("adaround", {"steps": 60})])
def test_methods_that_compare_layers_compare_those_of_the_scaled_generator(method, options):
    _, model = unbalanced()
    batches, unseen, bitmap = inputs(8), inputs(12)[8:], BitMap({"0.weight": "w3", "2.weight": "w3"})
    bank = mpsearch.recover(model, bitmap, batches, "equalise")
    after = mpsearch.recover(model, bitmap, batches, method, bank=bank, **options)
    assert error(model, bitmap, unseen, after) < 0.98 * error(model, bitmap, unseen, bank)
    before, now = (own.quantized("0.weight", bitmap["0.weight"]) for own in (bank, after))
    moved = after.tensors["0.bias"] - bank.tensors["0.bias"] if method == "bias" else now.codes - before.codes
    assert moved.any(), "the giver, whose outputs are not those of the model, has learnt as well"


def test_scales_that_are_wrong_are_found_again_in_the_scaled_generator():
    _, model = unbalanced()
    batches, unseen, bitmap = inputs(8), inputs(12)[8:], BitMap({"0.weight": "w3", "2.weight": "w3"})
    bank = mpsearch.recover(model, bitmap, batches, "equalise")
    stored = bank.quantized("0.weight", bitmap["0.weight"])
    wrong = bank.recovered(bitmap, Recovered({"0.weight": stored.with_learnable({"scale": 1.5 * stored.scale})}))
    found = mpsearch.recover(model, bitmap, batches, "scales", bank=wrong)
    assert error(model, bitmap, unseen, found) < 1.1 * error(model, bitmap, unseen, bank)
    assert error(model, bitmap, unseen, wrong) > 2 * error(model, bitmap, unseen, bank)


@pytest.mark.parametrize("text", ["w3zg72", "w[2*1,4*2]", "p3", "w3r1"])
def test_every_stored_form_is_made_from_the_scaled_weights(text):
    _, model = unbalanced()
    batches, bitmap = inputs(8), BitMap({"0.weight": "w6", "2.weight": text})
    bank = mpsearch.recover(model, bitmap, batches, "equalise")
    assert error(model, bitmap, batches, bank) < 0.9 * error(model, bitmap, batches)


def test_where_nothing_can_be_scaled_nothing_is_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 3, 3)).eval()
    bank = mpsearch.recover(model, {"0.weight": "w3", "2.weight": "w3a8"}, inputs(), "equalise")
    assert (bank.floats, bank.tensors, bank.ranges) == ({}, {}, {})


def test_values_in_place_of_others_come_back_when_the_inner_ones_go():
    model = nn.Linear(2, 2)
    one, two = torch.ones(2, 2), torch.zeros(2, 2)
    with substituted(model, {"weight": one}):
        with substituted(model, {"weight": two}):
            assert model.weight is two
        assert model.weight is one
    assert isinstance(model.weight, nn.Parameter)


def test_a_method_without_lessons_is_refused():
    with pytest.raises(UsageError, match="equalise needs lessons of 1 or more, not 0"):
        Equalise(lessons=0)
