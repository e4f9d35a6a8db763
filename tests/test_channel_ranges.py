"""Layers whose input has an activation range for each of its channels."""

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import BitMap, UsageError
from mpsearch.api import make_subject
from mpsearch.calibration import Calibration
from mpsearch.config import RunConfig
from mpsearch.cost import Size
from mpsearch.export import load_packed, payload_bytes, read_map
from mpsearch.layers import find_layers
from mpsearch.quant import InputGrid, input_errors, observe
from mpsearch.sensitivity import OnePass, Perturbation
from mpsearch.types import Range, parse_formats

EACH = {"channel_ranges": ["*"]}


class Uneven(nn.Module):
    """Tokens and images whose channels span four orders of magnitude, the loud ones weighing little."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2, groups=1)
        self.register_buffer("loud", 10.0 ** torch.linspace(-2, 2, 6))

    def forward(self, x):
        tokens = self.mix(x.flatten(2).movedim(1, 2) * self.loud)
        tokens = self.attention(tokens, tokens, tokens)[0]
        image = tokens.movedim(1, 2).unflatten(2, x.shape[2:]) * self.loud.view(-1, 1, 1)
        return self.up(self.conv(image).relu()).tanh()


@pytest.fixture
def uneven():
    torch.manual_seed(0)
    model = Uneven().eval()
    with torch.no_grad():
        model.mix.weight /= model.loud
        model.conv.weight /= model.loud.view(1, -1, 1, 1)
    return model, [(torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


def test_globs_choose_the_layers_and_only_known_kinds_can(uneven):
    model, batches = uneven
    layers = find_layers(model, batches[0], channel_ranges=["mix*", "attention*", "up*"])
    assert {layer.name: layer.input_parts for layer in layers} == {
        "mix.weight": (1,) * 6,
        "attention.in_proj_weight": (),
        "attention.out_proj.weight": (1,) * 6,
        "conv.weight": (),
        "up.weight": (1,) * 4,
    }
    with pytest.raises(UsageError, match=r"'mixx' matches no layer; the closest is 'mix\.weight'"):
        find_layers(model, batches[0], channel_ranges=["mixx"])
    assert RunConfig.model_validate({"layers": EACH}).layers.channel_ranges == ("*",)


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 4), -1), ((5, 4), -1), ((2, 4, 3, 3), -3), ((2, 4, 7), -2)])
def test_every_channel_is_rounded_by_itself(shape, axis):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ranges = (Range(-1, 1, 1), Range(0, 0.5, 1), Range(-0.1, 0, 1), Range(-2, 1, 1))
    grids = [InputGrid(ranges, bits, axis) for bits in (4, 8)]
    for grid in grids:
        alone = [InputGrid((span,), grid.bits)(x.select(axis, c)) for c, span in enumerate(ranges)]
        assert torch.equal(grid(x), torch.stack(alone, dim=axis))
    expected = torch.stack([(grid(x) - x).flatten() for grid in grids])
    torch.testing.assert_close(input_errors(x, grids), expected, rtol=0, atol=1e-6)


def test_a_channel_gets_the_range_that_it_would_get_alone():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1, 100.0])
    one = nn.Linear(3, 2)
    places = {"weight": ["weight"]}

    def ranges(model, x):
        parts = (1,) * x.shape[1]
        return observe(model, Calibration.of([(x,)]), places, {"weight": parts})[1]["weight"].grid(6).ranges

    for channel, span in enumerate(ranges(one, x)):
        assert (span,) == ranges(nn.Linear(1, 2), x[:, [channel]])


def test_few_samples_of_a_channel_clip_no_tail_that_they_may_have_missed():
    x = torch.randn(200_000, 512, generator=torch.Generator().manual_seed(0))
    seen = observe(nn.Linear(512, 1), Calibration.of([(x,)]), {"weight": ["weight"]}, {"weight": (1,) * 512})[1][
        "weight"
    ]
    assert len(seen.values()[0]) == 128 + 2
    eight, four = (torch.tensor([(low, high) for low, high, _ in seen.grid(bits).ranges]) for bits in (8, 4))
    extremes = torch.stack([x.amin(0), x.amax(0)], dim=1)
    torch.testing.assert_close(eight, extremes, rtol=0.1, atol=0)
    assert (four / extremes).mean() < 0.95


def test_quiet_channels_survive_beside_loud_ones(uneven):
    model, batches = uneven
    bitmap = dict.fromkeys(("mix.weight", "conv.weight"), "a6")
    whole, each = (make_subject(model, batches, **rules).error(BitMap(bitmap)).value for rules in ({}, EACH))
    assert each < 0.01 * whole


def test_estimators_know_the_range_of_every_channel(uneven):
    subject = make_subject(*uneven, **EACH)
    formats = parse_formats(["a4", "a6"])
    true = Perturbation()(subject, formats)
    found = OnePass(probes=256)(subject, formats)
    rows = [row for row, layer in enumerate(subject.layers) if layer.act_elements]
    np.testing.assert_allclose(
        [found.value(subject.layers[row].name, f) for row in rows for f in formats],
        [true.value(subject.layers[row].name, f) for row in rows for f in formats],
        rtol=0.5,
    )


def test_allocate_and_smallest_take_the_rule(uneven):
    model, batches = uneven
    solution = mpsearch.allocate(model, batches, ["bops<=10%"], ["w4a6", "w8a8"], effort="fast", **EACH)
    assert len(solution.bitmap.ranges["conv.weight"]) == 6
    found = mpsearch.smallest(model, batches, "psnr>=20", formats=["w4a8", "w8a8"], effort="fast", **EACH)
    assert len(found.bitmap.ranges["mix.weight"]) == 6


def test_files_hold_every_range_and_exactly_the_bytes_that_were_predicted(uneven, tmp_path):
    model, batches = uneven
    subject = make_subject(model, batches, **EACH)
    formats = parse_formats(["w4a8", "w4"])
    bitmap = subject.with_ranges(
        BitMap({layer.name: subject.layers.choices(layer, formats)[0] for layer in subject.layers})
    )
    files = mpsearch.export(model, bitmap, tmp_path, batches)
    for kind in ("json", "yaml", "csv"):
        assert read_map(files[kind]) == bitmap
    table = Size()(subject.layers, subject.layers.columns(formats))
    predicted = sum(table.value(name, format) for name, format in bitmap.items()) + table.constant
    assert payload_bytes(files["packed"]) == predicted
    with mpsearch.quantized(model, bitmap), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        assert torch.equal(load_packed(files["packed"], Uneven())(*batches[0]), expected)
        torch.testing.assert_close(mpsearch.split(model, bitmap)(*batches[0]), expected, rtol=1e-5, atol=1e-5)
