"""Widths for single output channels: the search, the budgets, and the whole way through the command line."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import SMALL, call, project  # noqa: F401
from torch import nn

import mpsearch
from mpsearch import BitMap, Budget, Layer, Layers, Table, Unit, UsageError, load_packed, quantized
from mpsearch.api import make_subject, tables
from mpsearch.budgets import cost_of, limit_of
from mpsearch.calibration import Calibration, outputs
from mpsearch.cost import COSTS
from mpsearch.export import Split, split
from mpsearch.search import Ilp, leap_channels, predicted_by_channel, split_channels
from mpsearch.sensitivity import OnePass
from mpsearch.types import Format, Limit, Measured, Problem, parse_formats

FORMATS = parse_formats(["w2", "w4", "w8"])


def layers_of(*channels):
    items = [
        Layer(f"l{i}.weight", "Conv2d", (n, 3, 3, 3), 0, 100 * n, 10, 108 * n, (f"l{i}.weight",))
        for i, n in enumerate(channels)
    ]
    return Layers(tuple(items), rest_bytes=10)


def grouped(table, layers, budgets, groups, start="w2"):
    limits = [limit_of(Budget.parse(text), layers, table.formats) for text in budgets]

    def price(name, format):
        row = [layer.name for layer in layers].index(name)
        return np.array([COSTS[limit.budget.cost]()(layers, (format,)).values[row, 0] for limit in limits])

    return split_channels(table, BitMap(dict.fromkeys((layer.name for layer in layers), start)), limits, price, groups)


def random_table(layers, seed):
    rng = np.random.default_rng(seed)
    units = tuple(Unit(layer.name, (c,)) for layer in layers for c in range(layer.channels))
    bits = np.array([f.bits for f in FORMATS])
    values = rng.lognormal(0, 2, (len(units), 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, (len(units), len(bits)))
    return Table(units, FORMATS, values, np.zeros_like(values), "mse", "test")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 3), st.floats(2.6, 6.0))
def test_every_budget_and_the_number_of_groups_hold(seed, groups, limit):
    layers = layers_of(5, 8, 3)
    table = random_table(layers, seed)
    found = grouped(table, layers, [f"bits<={limit}", "size<=28%"], groups)
    if found is None:
        return
    assert cost_of("bits", found, layers) <= limit * (1 + 1e-9)
    full = sum(layer.float_bytes for layer in layers) + 10
    assert cost_of("size", found, layers) <= 0.28 * full * (1 + 1e-9)
    for layer in layers:
        widths = found[layer.name].channel_bits or (found[layer.name].bits,)
        assert len(set(widths)) <= groups


def test_as_good_as_the_exact_solution_that_pays_for_all_widths_everywhere():
    layers = layers_of(16, 32, 16)
    said = sum(8 * (3 + layer.channels // 4) for layer in layers) / layers.numel
    ratios = []
    for seed in range(15):
        table = random_table(layers, seed)
        shares = np.array([[27 * f.bits / layers.numel for f in FORMATS]] * len(table.units))
        costs = Table(table.units, FORMATS, shares, np.zeros_like(shares), "bits", "channels", said)
        exact = Ilp()(Problem(table, (Limit(Budget.parse("bits<=5"), costs, 5.0, 32.0),)))
        best = table.values[np.arange(len(exact.choice)), exact.choice].sum()
        ratios.append(predicted_by_channel(table, grouped(table, layers, ["bits<=5"], 3)) / best)
    # The sets of widths are chosen by prices: a single instance may lose a few per cent to where the prices break.
    assert np.mean(ratios) <= 1.005
    assert max(ratios) <= 1.05


def test_what_stays_float_and_activations_are_kept():
    layers = layers_of(4, 4, 4)
    start = BitMap({"l0.weight": "w4a8", "l1.weight": "float", "l2.weight": "w4"}, {"l0.weight": (-1.0, 1.0)})
    table = random_table(layers, 0)
    limits = [limit_of(Budget.parse("bits<=14"), layers, table.formats)]

    def price(name, format):
        row = [layer.name for layer in layers].index(name)
        return COSTS["bits"]()(layers, (format,)).values[row, :1]

    found = split_channels(table, start, limits, price, 3)
    assert found["l1.weight"] == start["l1.weight"]
    assert found["l0.weight"].act_bits == 8
    assert dict(found.ranges) == dict(start.ranges)


def test_groups_never_lose_on_calibration_inputs_and_meet_the_budget(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    whole = mpsearch.allocate(model, batches, ["bits<=4"], effort="fast")
    split = mpsearch.allocate(model, batches, ["bits<=4"], effort="fast", groups=8)
    shot.check()
    assert split.error.value <= whole.error.value
    assert split.costs["bits"] <= 4
    again = mpsearch.allocate(model, batches, ["bits<=4"], effort="fast", groups=8)
    assert again.bitmap == split.bitmap
    assert mpsearch.Solution.from_json(json.loads(json.dumps(split.to_json()))).bitmap == split.bitmap


def test_without_a_generator_the_table_decides(deconv):
    model, batches = deconv
    subject = make_subject(model, batches)
    table, channels = tables(OnePass(probes=8), subject, parse_formats(["w2", "w4", "w8"]), 4)
    found = mpsearch.search(table, subject.layers, ["bits<=4"], groups=4, channels=channels)
    assert found.method == "channels"
    assert found.error is None
    assert found.costs["bits"] <= 4


@pytest.mark.parametrize("groups", [0, -1, 2.5, "many"])
def test_groups_must_be_a_number(deconv, groups):
    model, batches = deconv
    with pytest.raises(UsageError, match="groups is"):
        mpsearch.allocate(model, batches, groups=groups)


def test_a_run_with_groups_writes_reads_and_exports_them(project):  # noqa: F811
    code, _, error = call("run", "small.yaml", "--out", "out", "--effort", "fast", "--groups", "8")
    assert code == 0, error
    entry = json.loads((project / "out/bitmap.json").read_text())
    assert entry["method"] == "channels"
    assert "layer-wise" in entry["baselines"]
    (widths,) = [e["channel_bits"] for n, e in entry["layers"].items() if n == "2.weight"]
    assert len(widths) == 768
    assert np.mean(widths) == pytest.approx(entry["layers"]["2.weight"]["weight_bits"])
    assert "w[" not in (project / "out/report.md").read_text(), "a report is for people"
    before = (project / "out/bitmap.json").read_bytes()
    assert call("run", "small.yaml", "--out", "out", "--effort", "fast", "--groups", "8")[0] == 0
    assert (project / "out/bitmap.json").read_bytes() == before
    (project / "small.yaml").write_text(SMALL + "groups: 0\n")
    code, _, error = call("run", "small.yaml", "--out", "other")
    assert code == 2
    assert "groups" in error


def test_the_packed_file_computes_what_the_map_says(deconv, tmp_path):
    model, batches = deconv
    model.eval()
    solution = mpsearch.allocate(model, batches, ["bits<=4"], effort="fast", groups=4)
    files = mpsearch.export(model, solution.bitmap, tmp_path, batches)
    with quantized(model, solution.bitmap), torch.no_grad():
        expected = model(*batches[0])
    assert torch.equal(load_packed(files["packed"], model)(*batches[0]), expected)


def test_split_layers_compute_what_the_map_says(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    layers = mpsearch.find_layers(model, batches[0])
    seed = torch.Generator().manual_seed(0)
    formats = {}
    for layer in layers:
        act = 8 if layer.act_elements else None
        formats[layer.name] = Format.of_channels(torch.randint(2, 6, (layer.channels,), generator=seed).tolist(), act)
    bitmap = make_subject(model, batches).with_ranges(BitMap(formats))
    wanted = outputs_of(model, bitmap, batches)
    convolutions = {f"Conv{kind}{d}d" for kind in ("", "Transpose") for d in (1, 2, 3)}
    if {layer.kind for layer in layers} - convolutions - {"Linear"}:
        with pytest.raises(UsageError, match="cannot be split"):
            split(model, bitmap)
        shot.check()
        return
    twin = split(model, bitmap)
    shot.check()
    found = outputs(twin, Calibration.of(batches))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    parts = [part for module in twin.modules() if isinstance(module, Split) for part in module.parts]
    assert parts
    for part in parts:
        rows = part.weight.movedim(1 if "Transpose" in type(part).__name__ else 0, 0).flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2**part.bits, "one width a part"


def outputs_of(model, bitmap, batches):
    with quantized(model, bitmap):
        return outputs(model, Calibration.of(batches))


class Reading(nn.Module):
    """Computes with the weight of its layer itself, as modulated convolutions do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * self.layer.weight.square().sum() + self.layer.bias.sum() + self.layer.out_channels


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Conv2d(12, 24, 3, groups=12, stride=2),
        nn.Conv2d(12, 18, 3, groups=3),
        nn.ConvTranspose2d(12, 9, 4, 2, groups=3),
        nn.ConvTranspose2d(12, 9, 4),
    ],
    ids=["depthwise", "multiplied", "grouped", "grouped and transposed", "transposed"],
)
def test_split_layers_of_groups_and_their_weight(layer):
    model = Reading(layer)
    batches = [(torch.randn(4, 12, 9, 9, generator=torch.Generator().manual_seed(1)),)]
    (found,) = mpsearch.find_layers(model, batches[0])
    seed = torch.Generator().manual_seed(0)
    bitmap = {found.name: Format.of_channels(torch.randint(2, 6, (found.channels,), generator=seed).tolist())}
    wanted = outputs_of(model, bitmap, batches)[0]
    twin = split(model, bitmap)
    torch.testing.assert_close(twin(*batches[0]), wanted, rtol=1e-5, atol=1e-5)
    alone = outputs(twin.layer, Calibration.of([(batches[0][0][0],)]))  # without a batch
    assert alone[0].ndim == 3


def test_a_weight_whose_channels_are_inputs_elsewhere_is_not_split():
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 8, 3))
    model[1].weight = model[0].weight
    with pytest.raises(UsageError, match="cannot be split"):
        split(model, {"0.weight": Format.of_channels([2, 3, 4, 2, 3, 4])})


def test_the_bound_holds_for_widths_of_channels():
    generator = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Conv2d(32, 3, 3))
    batches = [(torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1)),)]
    found = mpsearch.allocate(generator, batches, ["bits<=3"], effort="fast", groups=4)
    assert found.method == "channels"
    assert found.bound <= found.predicted < found.baselines["layer-wise"].predicted
    assert found.gap == pytest.approx((found.predicted - found.bound) / found.predicted)
    assert found.gap < 0.2
    assert found.status == "feasible"


def test_split_names_what_it_lacks(deconv):
    model, _ = deconv
    with pytest.raises(UsageError, match=r"main\.0\.weight lacks its activation range"):
        split(model, {"main.0.weight": "w[2*4,3*4]a8"})


def test_leaps_find_what_the_table_of_channels_does_not_see():
    """Channels of one layer err in the same direction, those of the other against it: the truth is their difference."""
    layers = layers_of(12, 12)
    rng = np.random.default_rng(4)
    units = tuple(Unit(layer.name, (c,)) for layer in layers for c in range(layer.channels))
    bits = np.array([f.bits for f in FORMATS])
    vectors = rng.normal(size=(len(units), 1, 5)) + rng.normal(size=(len(units), len(bits), 5))
    vectors = vectors * (rng.lognormal(0, 0.5, (len(units), 1)) * 2.0**-bits)[:, :, None]
    table = Table(units, FORMATS, np.square(vectors).sum(2), np.zeros(vectors.shape[:2]), "mse", "test")
    budgets = ["bits<=5"]
    limits = [limit_of(Budget.parse(text), layers, FORMATS) for text in budgets]

    def price(name, format):
        row = [layer.name for layer in layers].index(name)
        return COSTS["bits"]()(layers, (format,)).values[row, :1]

    def columns(bitmap):
        widths = [(bitmap[u.layer].channel_bits or [bitmap[u.layer].bits] * 12)[u.channels[0]] for u in units]
        return np.array([list(bits).index(width) for width in widths])

    def residual(bitmap):
        return vectors[np.arange(len(units)), columns(bitmap)].sum(axis=0)

    def evaluate(bitmap):
        return Measured(float(np.square(residual(bitmap)).sum()), 0.0, 1)

    def slopes(bitmap):
        now = vectors[np.arange(len(units)), columns(bitmap)]
        return 2 * (vectors - now[:, None]) @ residual(bitmap)

    start = grouped(table, layers, budgets, 3)
    found = leap_channels(table, start, limits, price, 3, evaluate, slopes)
    assert evaluate(found).value < 0.8 * evaluate(start).value
    assert cost_of("bits", found, layers) <= 5 * (1 + 1e-9)
    assert leap_channels(table, start, limits, price, 3, evaluate, lambda bitmap: None) == start
