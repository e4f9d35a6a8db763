"""Formats of every kind side by side in one search."""

import json

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import UsageError
from mpsearch.budgets import size_of
from mpsearch.export import load_packed, payload_bytes
from mpsearch.quant import quantize_weight
from mpsearch.types import Format
from mpsearch.types.storage import unfit

INTEGERS = ["w2", "w3", "w4", "w5", "w6"]
RICHER = [*INTEGERS, "w2z", "w3z", "w3g8", "p2", "p3", "ternary", "w2r1", "bf16", "k4x3"]


def perceptron():
    torch.manual_seed(0)
    layers = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8)]
    return nn.Sequential(*layers).eval(), [(torch.randn(32, 16),)]


def test_richer_formats_are_never_worse_than_integers_alone():
    model, batches = perceptron()
    gained = []
    for share in (17, 18, 20, 22):
        plain, rich = (
            mpsearch.allocate(model, batches, [f"size<={share}%"], formats=formats, effort="standard")
            for formats in (INTEGERS, RICHER)
        )
        assert rich.error.value <= plain.error.value
        assert rich.baselines["integers"].error.value == pytest.approx(plain.error.value)
        assert "integers" not in plain.baselines
        gained.append(rich.error.value < 0.97 * plain.error.value)
        assert not any(str(format) == "k4x3" for format in rich.bitmap.values()), "no layer has kernels"
    assert any(gained)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.last(self.up(self.first(x).relu()).relu())


MAPS = [
    {"first.weight": "k3x3a8", "up.weight": "k3x4", "last.weight": "w4r1a8"},
    {"first.weight": "ternary", "up.weight": "w3zg32a8", "last.weight": "p3"},
    {"first.weight": "w1a8", "up.weight": "bf16a8", "last.weight": "fp8a6"},
]


@pytest.mark.parametrize("bitmap", MAPS)
def test_packed_files_of_every_format_come_back(bitmap, tmp_path):
    torch.manual_seed(0)
    model, batches = Convolutions().eval(), [(torch.randn(2, 3, 8, 8),)]
    files = mpsearch.export(model, bitmap, tmp_path, batches)
    whole = mpsearch.BitMap.from_json(json.loads(files["json"].read_text()))
    assert {name: str(format) for name, format in whole.items()} == bitmap
    layers = mpsearch.find_layers(model, batches[0])
    assert payload_bytes(files["packed"]) == size_of(whole, layers)
    with mpsearch.quantized(model, whole) as small, torch.no_grad():
        expected = small(*batches[0])
    with torch.no_grad():
        assert torch.equal(load_packed(files["packed"], model)(*batches[0]), expected)


def test_every_estimator_takes_formats_that_only_some_layers_can_take():
    torch.manual_seed(0)
    model, batches = Convolutions().eval(), [(torch.randn(4, 3, 8, 8),)]
    for name in mpsearch.sensitivity.ESTIMATORS:
        table = mpsearch.estimate(model, batches, ["w4", "k3x3", "w2g8", "ternarya8"], name)
        cells = dict(zip(map(str, table.formats), table.values.T, strict=True))
        known = {text: [value == value for value in column] for text, column in cells.items()}
        assert known["k3x3"] == [True, False, False], name
        assert known["w4"] == known["ternarya8"] == [True, True, True], name


def test_a_format_that_a_layer_cannot_take_is_one_line(tmp_path):
    torch.manual_seed(0)
    model, batches = Convolutions().eval(), [(torch.randn(2, 3, 8, 8),)]
    with pytest.raises(UsageError, match=r"last.weight cannot take k3x3: kernels of 3×3, but it has 1×1"):
        mpsearch.export(model, {"last.weight": "k3x3"}, tmp_path, batches)
    assert not list(tmp_path.iterdir()), "refused before any file is written"
    why = r"first.weight cannot take w4g5: groups of 5 do not divide the 27"
    with pytest.raises(UsageError, match=why), mpsearch.quantized(model, {"first.weight": "w4g5"}):
        pass
    with pytest.raises(UsageError, match="can take none of k3x5"):
        mpsearch.allocate(model, batches, ["bits<=4"], ["k3x5"])


def test_with_several_widths_a_layer_too_richer_formats_are_never_worse():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 3)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.exp(1.2 * torch.randn(12, 1, 1, 1)))
    batches = [(torch.randn(8, 3, 8, 8),)]
    integers, more = ["w2", "w3", "w4", "w5", "w6"], ["p2", "p3", "p4", "ternary", "w3z", "w4g9", "k6x3"]
    errors = [
        mpsearch.allocate(model, batches, ["size<=12%"], formats, groups=8).error.value
        for formats in (integers, integers + more)
    ]
    assert errors[1] <= errors[0] * (1 + 1e-6)


def test_kernels_of_modulated_weights_have_codebooks():
    assert unfit(Format.parse("k8x3"), (1, 64, 64, 3, 3), 1) == ""
    assert unfit(Format.parse("k8x3"), (1, 8, 3, 3), 1) == "", "a transposed convolution of one channel"
    assert unfit(Format.parse("k8x3"), (64, 64, 3, 3, 3), 0) == "kernels of 3×3, but it has 3×3×3"
    weight = torch.randn(1, 8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    stored = quantize_weight(weight, Format.parse("k4x3"), 1)
    assert stored.dequantized().shape == weight.shape
    assert 0 < (stored.dequantized() - weight).square().mean() < weight.square().mean()
