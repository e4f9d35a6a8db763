"""Layers that read the concatenation of several tensors: each tensor has a range of its own."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import BitMap
from mpsearch.api import make_subject
from mpsearch.cost import Size
from mpsearch.export import load_packed, payload_bytes, read_map
from mpsearch.layers import find_layers, input_parts
from mpsearch.quant import InputGrid, input_errors
from mpsearch.sensitivity import OnePass, Perturbation
from mpsearch.types import Range, parse_formats


class Skips(nn.Module):
    """A small U-Net: a quiet branch and one a hundred times as loud meet in convolutions and in a linear layer."""

    def __init__(self):
        super().__init__()
        self.quiet = nn.Conv2d(3, 4, 3, padding=1)
        self.loud = nn.Conv2d(3, 6, 3, padding=1)
        self.joined = nn.Conv2d(10, 5, 1, bias=False)
        self.again = nn.Conv2d(15, 3, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        both = torch.cat([self.quiet(x), 100 * self.loud(x)], 1)
        found = self.joined(both)
        image = self.again(torch.concat((found.tanh(), both), dim=-3))
        vector = torch.cat([image.mean((2, 3)), found.mean((2, 3))[:, :3]], axis=1)
        return image.tanh() + self.head(vector)[:, :1, None, None]


@pytest.fixture
def skips():
    torch.manual_seed(0)
    model = Skips().eval()
    with torch.no_grad():  # what is loud weighs little
        model.joined.weight[:, 4:] *= 0.01
        model.again.weight[:, 9:] *= 0.01
    return model, [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


def test_what_an_input_is_joined_from_is_found(skips):
    model, batches = skips
    layers = find_layers(model, batches[0])
    parts = {layer.name.removesuffix(".weight"): layer.input_parts for layer in layers}
    assert parts == {"quiet": (), "loud": (), "joined": (4, 6), "again": (5, 4, 6), "head": (3, 3)}
    assert input_parts(model, batches[0], ["again.weight"]) == {"again.weight": (5, 4, 6)}
    assert type(layers).from_json(json.loads(json.dumps(layers.to_json()))) == layers


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.twice = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        mixed = self.mix(torch.cat([x, -x], 1))  # tokens, not channels
        image = mixed.movedim(1, 2)[..., None]
        image = self.twice(torch.cat([image[:, :2], image[:, 2:]], 1))
        return self.twice(image)  # joined the first time only


def test_tokens_and_inputs_that_are_not_always_joined_stay_whole():
    layers = find_layers(Tokens(), (torch.randn(2, 3, 4),))
    assert [layer.input_parts for layer in layers] == [(), ()]


def test_a_grid_for_every_tensor_rounds_each_by_itself():
    x = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    grids = [InputGrid((Range(-1.0, 2.0, 2), Range(-0.1, 0.2, 3)), bits) for bits in (4, 8)]
    for grid in grids:
        expected = torch.cat(
            [
                InputGrid((Range(-1.0, 2.0),), grid.bits)(x[:, :2]),
                InputGrid((Range(-0.1, 0.2),), grid.bits)(x[:, 2:]),
            ],
            dim=1,
        )
        assert torch.equal(grid(x), expected)
    errors = torch.stack([(grid(x) - x).flatten() for grid in grids])
    torch.testing.assert_close(input_errors(x, grids), errors, rtol=0, atol=1e-6)
    assert input_errors(x, []).shape == (0, x.numel())


def test_a_quiet_tensor_survives_beside_a_loud_one(skips):
    model, batches = skips
    subject = make_subject(model, batches)
    bitmap = subject.with_ranges(BitMap({"joined.weight": "a4"}))
    quiet, loud = bitmap.ranges["joined.weight"]
    assert (quiet.channels, loud.channels) == (4, 6)
    assert loud.high - loud.low > 20 * (quiet.high - quiet.low)
    whole = bitmap.with_ranges({"joined.weight": (Range(min(quiet.low, loud.low), max(quiet.high, loud.high)),)})

    def error(found):
        with mpsearch.quantized(model, found), torch.no_grad():
            return sum((model(*batch) - own).square().sum().item() for batch, own in zip(batches, images, strict=True))

    with torch.no_grad():
        images = [model(*batch) for batch in batches]
    assert error(bitmap) < 0.2 * error(whole)


def test_estimators_know_the_ranges_of_every_tensor(skips):
    subject = make_subject(*skips)
    formats = parse_formats(["a4", "a6"])
    true = Perturbation()(subject, formats).values
    found = OnePass(probes=256)(subject, formats).values
    rows = [name for name, layer in enumerate(subject.layers) if layer.input_parts]
    np.testing.assert_allclose(found[rows], true[rows], rtol=0.5)


def test_files_hold_every_range_and_exactly_the_bytes_that_were_predicted(skips, tmp_path):
    model, batches = skips
    layers = find_layers(model, batches[0])
    formats = {layer.name: "w4a8" for layer in layers}
    files = mpsearch.export(model, formats, tmp_path, batches)
    maps = [read_map(files[kind]) for kind in ("json", "yaml", "csv")]
    assert maps[0] == maps[1] == maps[2]
    assert [span.channels for span in maps[0].ranges["again.weight"]] == [5, 4, 6]
    assert [span.channels for span in maps[0].ranges["quiet.weight"]] == [0]
    table = Size()(layers, parse_formats(["w4a8"]))
    assert payload_bytes(files["packed"]) == table.values.sum() + table.constant
    loaded = load_packed(files["packed"], Skips())
    with mpsearch.quantized(model, maps[0]), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        assert torch.equal(loaded(*batches[0]), expected)
        apart = mpsearch.split(model, maps[0])
        torch.testing.assert_close(apart(*batches[0]), expected, rtol=1e-5, atol=1e-5)


def test_one_range_given_for_the_whole_input_is_kept(skips, tmp_path):
    model, batches = skips
    bitmap = BitMap({"joined.weight": "w8a8"}, {"joined.weight": (Range(-50.0, 50.0),)})
    files = mpsearch.export(model, bitmap, tmp_path, batches)
    layers = find_layers(model, batches[0])
    table = Size()(layers, parse_formats(["float", "w8a8"]))
    expected_bytes = sum(table.value(layer.name, bitmap.get(layer.name, "float")) for layer in layers)
    assert payload_bytes(files["packed"]) == expected_bytes + table.constant
    loaded = load_packed(files["packed"], Skips())
    with mpsearch.quantized(model, bitmap), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        assert torch.equal(loaded(*batches[0]), expected)


def test_ranges_that_make_no_sense_are_one_line():
    for ranges in ([[-1, 1, 0], [-1, 1, 3]], [[-1, 1]], [[1, 2, 4]], []):
        payload = {"layers": {"joined.weight": {"format": "w8a8", "act_range": ranges}}}
        with pytest.raises(mpsearch.MpsearchError, match="not a bit map"):
            BitMap.from_json(payload)
    bitmap = BitMap({"joined.weight": "w8a8"}, {"joined.weight": (Range(-1, 1, 4), Range(-1, 1, 5))})
    model = Skips()
    with mpsearch.quantized(model, bitmap), pytest.raises(mpsearch.UsageError, match="for 9 channels, the input 10"):
        model(torch.zeros(1, 3, 8, 8))
