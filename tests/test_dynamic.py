"""Activations that are rounded by the statistics of the sample at hand, beside those with ranges of their own."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import BitMap, Format, Unit, UsageError
from mpsearch.api import make_subject
from mpsearch.cost import Bops, Memory, Size
from mpsearch.export import load_packed, payload_bytes, read_map
from mpsearch.quant import DynamicGrid, InputGrid, input_errors
from mpsearch.quant.dynamic import normal_step
from mpsearch.recovery import RECOVERERS
from mpsearch.sensitivity import ESTIMATORS, OnePass, Orm, Perturbation, slopes
from mpsearch.sensitivity.noise import input_noise
from mpsearch.types import Range, activations_of, parse_formats

KINDS = [(act, bits) for act in "dm" for bits in (4, 6, 8)]
SHAPES = {  # shape → (axis of the channels, axes that one grid holds for)
    "images": ((3, 4, 5, 6), -3, (2, 3)),
    "tokens": ((3, 7, 4), -1, (1,)),
    "lines": ((3, 4, 7), -2, (2,)),
    "one image": ((4, 5, 6), -3, (1, 2)),
    "vectors": ((3, 40), -1, (1,)),
    "one vector": ((40,), -1, (0,)),
    "pixels": ((3, 40, 1, 1), -3, (1, 2, 3)),
    "one token": ((3, 1, 40), -1, (1, 2)),
}


def draw(*shape, seed=0):
    """Channels and samples of all sizes, with tails, off zero; every third value what a ReLU leaves."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    size = 10 ** torch.randn([n if at < 2 else 1 for at, n in enumerate(shape)], generator=generator)
    x = size * (x * x.abs().sqrt() + 0.3)
    return torch.where(torch.rand(shape, generator=generator) < 0.3, 0.0, x)


def by_hand(values, act, bits):
    """The values of one grid, each on the nearest of its levels; one after the other, in double precision."""
    x = [float(value) for value in values]
    mean, low, high, levels = sum(x) / len(x), min(x), max(x), 2**bits
    step = (high - low) / (levels - 1)
    if act == "d":
        step = min(step, normal_step(bits) * math.sqrt(sum((value - mean) ** 2 for value in x) / len(x)))
    first, last = round(low / step), round(high / step) - levels + 1  # lowest codes that leave none beyond the extremes
    starts = range(first, max(first, last) + 1)
    middle = low if act == "m" else mean - step * (levels - 1) / 2
    start = min(starts, key=lambda code: abs(code - middle / step))
    grid = [step * (start + code) for code in range(levels)]
    return [min(grid, key=lambda level: abs(level - value)) for value in x]


@pytest.mark.parametrize(("act", "bits"), KINDS)
@pytest.mark.parametrize(("shape", "axis", "over"), SHAPES.values(), ids=SHAPES)
def test_every_channel_of_every_sample_is_rounded_by_itself(act, bits, shape, axis, over):
    x = draw(*shape)
    found = DynamicGrid(bits, act, axis)(x)
    kept = [dim for dim in range(x.ndim) if dim not in over]
    rows = x.permute(*kept, *over).reshape(-1, math.prod(shape[dim] for dim in over))
    expected = torch.tensor([by_hand(row, act, bits) for row in rows])
    found = found.permute(*kept, *over).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found[rows == 0] == 0).all()
    assert max(len(row.unique()) for row in found) <= 2**bits


@pytest.mark.parametrize(("bits", "published"), [(2, 0.9957), (3, 0.5860), (4, 0.3352), (5, 0.1881)])
def test_the_step_for_normal_values_is_that_of_max_1960(bits, published):
    assert normal_step(bits) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_no_other_step_is_better_for_normal_values(bits):
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    half = 2 ** (bits - 1)

    def error(step):
        return (((x / step - 0.5).round().clamp(-half, half - 1) + 0.5) * step - x).square().mean()

    best = error(normal_step(bits))
    assert best < min(error(normal_step(bits) * share) for share in (0.9, 0.98, 1.02, 1.1))


def test_rounding_is_by_the_values_that_are_there():
    x = draw(3, 4, 9, 9)
    for act, bits in KINDS:
        grid = DynamicGrid(bits, act, -3)
        alone = torch.cat([grid(sample) for sample in x.split(1)])
        torch.testing.assert_close(grid(x), alone, rtol=1e-5, atol=0)
        torch.testing.assert_close(grid(x * 1000), grid(x) * 1000, rtol=1e-5, atol=0)
    assert (DynamicGrid(8, "m")(x) - x).abs().amax((2, 3)).le((x.amax((2, 3)) - x.amin((2, 3))) * 0.501 / 255).all()


def test_channels_that_do_not_vary_stay_as_they_are():
    x = torch.tensor([0.0, 5.0, -1e-3, 1e6])[None, :, None, None].expand(2, 4, 3, 3)
    for act, bits in KINDS:
        torch.testing.assert_close(DynamicGrid(bits, act)(x), x, rtol=1e-6, atol=0)


def test_half_precision_and_gradients_pass():
    x, v = draw(2, 3, 4, 4).half().requires_grad_(), draw(2, 3, 4, 4, seed=1).half()
    for act, bits in KINDS:
        rounded = DynamicGrid(bits, act)(x)
        assert rounded.dtype == torch.float16
        assert torch.equal(torch.autograd.grad((rounded * v).sum(), x)[0], v)


def test_errors_on_many_grids_are_those_of_one_grid_each():
    x = draw(2, 4, 6, 6)
    grids = [
        DynamicGrid(4, "d"),
        InputGrid((Range(-1.0, 2.0),), 4),
        DynamicGrid(8, "m"),
        InputGrid((Range(0, 1, 1),) * 4, 6),
    ]
    expected = torch.stack([(grid(x) - x).flatten() for grid in grids])
    torch.testing.assert_close(input_errors(x, grids), expected, rtol=1e-5, atol=1e-6)


class Uneven(nn.Module):
    """Channels that differ a hundredfold in size, and from sample to sample; what is loud weighs little."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.mix = nn.Linear(6, 6)
        self.last = nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.register_buffer("loud", 10.0 ** torch.linspace(-1, 1, 6)[:, None, None])

    def forward(self, x):
        image = self.first(x) * self.loud
        tokens = self.mix((image / self.loud).flatten(2).movedim(1, 2))
        return self.last(image + 0.01 * tokens.movedim(1, 2).unflatten(2, x.shape[2:])).tanh()


@pytest.fixture
def uneven():
    torch.manual_seed(0)
    model = Uneven().eval()
    with torch.no_grad():
        model.last.weight /= model.loud[..., None]
    return model, [(torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


@pytest.mark.parametrize("act", ["d", "m"])
def test_quiet_channels_survive_beside_loud_ones(uneven, act):
    subject = make_subject(*uneven)
    static, dynamic = (subject.error(BitMap({"last.weight": text})).value for text in ("w8a4", f"w8{act}4"))
    assert dynamic < 0.1 * static


def test_a_real_generator_keeps_more_of_its_pictures(embedded):
    def error(text):
        format = Format.parse(text)
        bitmap = {layer.name: format for layer in embedded.layers if layer.allows(format)}
        return embedded.error(BitMap(bitmap)).value

    for bits, share in ((4, 0.9), (6, 0.8), (8, 0.6)):
        for act in "dm":
            assert error(f"{act}{bits}") < share * error(f"a{bits}")


@pytest.mark.parametrize("text", ["w4d8", "d8", "fp16d4", "w[2*3,4]d6", "w4zg32m8", "m4", "k8x3d4"])
def test_text_and_format_are_inverses(text):
    format = Format.parse(text)
    assert str(format) == text
    assert format.act_bits == int(text[-1])
    assert format.weight_only == Format.parse(text[:-2] or "float")
    assert str(format.act_only) == text[-2:]
    assert format.weight_only.with_activations(format.act_only) == format
    assert not format.ranged
    assert format != Format.parse(text[:-2] + f"a{text[-1]}")


def test_activations_are_listed_once():
    formats = parse_formats(["w4", "w4d8", "d8", "w2a8", "m4"])
    assert [str(act) for act in activations_of(formats)] == ["a8", "d8", "m4"]


def test_maps_hold_no_ranges_for_them():
    bitmap = BitMap({"a": "w4d8", "b": "w4a8"}, dict.fromkeys("ab", (Range(-1, 1),)))
    assert list(bitmap.ranges) == ["b"]
    assert BitMap.from_json(bitmap.to_json()) == bitmap
    entry = bitmap.to_json()["layers"]["a"]
    assert entry == {"format": "w4d8", "weight_bits": 4, "act_bits": 8}
    parts = {Unit("a", (0,)): Format.parse("w2d8"), Unit("a", (1,)): Format.parse("w4d8")}
    assert dict(BitMap.from_units(parts)) == {"a": Format.parse("w[2,4]d8")}
    with pytest.raises(UsageError, match="one activation width"):
        BitMap.from_units(parts | {Unit("a", (1,)): Format.parse("w4a8")})


def test_they_cost_what_static_ones_cost_without_the_range(uneven):
    layers = mpsearch.find_layers(uneven[0], uneven[1][0])
    static, *dynamic = parse_formats(["w4a8", "w4d8", "w4m8"])
    for model in (Bops(), Memory()):
        values = model(layers, [static, *dynamic]).values
        assert (values == values[:, :1]).all()
    size = Size()(layers, [static, *dynamic]).values
    assert (size[:, 1:] == size[:, :1] - 8).all()


FORMATS = ["w4a8", "w4d8", "w4m8", "a4", "d4", "m4"]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:few samples")
def test_estimators_tell_them_apart(uneven, name):
    formats = parse_formats(FORMATS)
    subject = make_subject(*uneven)
    table = (Orm(by="error") if name == "orm" else ESTIMATORS[name]())(subject, formats)
    assert np.isfinite(table.values).all()
    for format in parse_formats(["a4", "d4", "m4"]):
        others = [table.value("last.weight", f) for f in formats if f != format]
        assert table.value("last.weight", format) not in others
    if table.measure == "mse":
        assert table.value("last.weight", "d4") < 0.5 * table.value("last.weight", "a4")


def test_one_pass_finds_their_true_error(uneven):
    subject = make_subject(*uneven)
    formats = parse_formats(["d4", "m4", "d6", "a6"])
    true = Perturbation()(subject, formats).values
    found = OnePass(probes=256)(subject, formats).values
    np.testing.assert_allclose(found, true, rtol=0.3)


def test_slopes_and_noise_are_those_of_the_values_they_round(uneven):
    model, x = nn.Linear(6, 4), draw(5, 9, 6)
    subject = make_subject(model, [(x,)])
    weight = model.weight.detach()
    grids = {text: DynamicGrid(4, text[0], -1) for text in ("d4", "m4")}
    formats = parse_formats(["float", "d4", "m4"])
    residual = (grids["d4"](x) - x) @ weight.T
    moves = [x - grids["d4"](x), torch.zeros_like(x), grids["m4"](x) - grids["d4"](x)]
    expected = [(2 * residual * (move @ weight.T)).mean().item() for move in moves]
    assert slopes(subject, BitMap({"weight": "d4"}), formats)[0] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    for text, grid in grids.items():
        noise = ((grid(x) - x).square().sum() / x.square().sum()).item()
        assert input_noise(subject, formats)["weight", Format.parse(text)] == pytest.approx(noise, rel=1e-4)


def test_one_search_chooses_among_all_of_them(uneven):
    model, batches = uneven
    solution = mpsearch.allocate(model, batches, ["bops<=4%"], ["w8a8", "w8a4", "w8d4", "w8m4"], effort="fast")
    acts = {name: str(format.act_only) for name, format in solution.bitmap.items()}
    assert acts["last.weight"] in ("d4", "m4")
    assert set(solution.bitmap.ranges) == {name for name, act in acts.items() if act[0] == "a"}


def test_channels_of_several_widths_keep_them(uneven):
    model, batches = uneven
    solution = mpsearch.allocate(model, batches, ["bits<=4"], ["w2d8", "w4d8", "w8d8"], effort="fast", groups=2)
    assert any(format.channel_bits for format in solution.bitmap.values())
    assert {str(format.act_only) for format in solution.bitmap.values()} == {"d8"}


def test_files_hold_exactly_what_was_predicted_and_compute_the_same(uneven, tmp_path):
    model, batches = uneven
    formats = {"first.weight": "w[4*3,8*3]d8", "mix.weight": "w4m6", "last.weight": "d4"}
    files = mpsearch.export(model, formats, tmp_path, batches)
    for kind in ("json", "yaml", "csv"):
        assert read_map(files[kind]) == BitMap(formats)
    layers = mpsearch.find_layers(model, batches[0])
    table = Size()(layers, parse_formats(formats.values()))
    predicted = sum(table.value(name, format) for name, format in formats.items()) + table.constant
    assert payload_bytes(files["packed"]) == predicted
    with mpsearch.quantized(model, formats), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        assert torch.equal(load_packed(files["packed"], Uneven())(*batches[0]), expected)
        torch.testing.assert_close(mpsearch.split(model, formats)(*batches[0]), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", RECOVERERS)
def test_maps_with_them_can_be_recovered(uneven, name):
    model, batches = uneven
    bitmap = {"first.weight": "w3d8", "mix.weight": "w3a8", "last.weight": "w3m8"}
    options = {"distil": {"steps": 40, "ranges": True}, "adaround": {"steps": 40}}.get(name, {})
    bank = mpsearch.recover(model, bitmap, batches, name, **options)
    with torch.no_grad():
        images = torch.cat([model(*batch) for batch in batches])

    def error(own):
        with mpsearch.quantized(model, bitmap, batches, own), torch.no_grad():
            return (torch.cat([model(*batch) for batch in batches]) - images).square().mean()

    assert error(bank) <= error(None)
