"""Entropy-coded weights: exact, never longer, their bytes a cost, and a broken stream a clear error."""

import json
import math
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import mpsearch
from mpsearch import ArtifactError, BitMap, Format, Layer, Layers, UsageError
from mpsearch.budgets import cost_of
from mpsearch.cli import app
from mpsearch.cost import Coded, cost_models
from mpsearch.export import load_packed, payload_bytes
from mpsearch.export.packed import METADATA
from mpsearch.quant import WeightBank, quantize_weight
from mpsearch.quant.stored import huffman
from mpsearch.quant.stored.entropy import FREE, ZEROS, coded, coded_bytes, decoded
from mpsearch.quant.stored.packing import unpack_unsigned
from mpsearch.types import parse_formats

FORMATS = (*(f"w{bits}" for bits in range(1, 9)), "w4z", "w3zg12", "w4r2", "ternary", "p1", "p5", "k4x3", "k11x3")


def lengths_of(symbols, width):
    """Bits of the codeword of every symbol, as a stream says them."""
    stream = huffman.encoded(symbols, width)
    return unpack_unsigned(stream[huffman.COUNT_BYTES :], 4, 1 << width)


def drawn(width, count, skew, seed=0):
    share = np.exp(-skew * np.arange(1 << width, dtype=float))
    return np.random.default_rng(seed).choice(1 << width, count, p=share / share.sum())


def entropy(symbols):
    share = np.unique(symbols, return_counts=True)[1] / max(len(symbols), 1)
    return float(-(share * np.log2(share)).sum())


def weight(shape, tails=1.0, seed=0):
    """Normal weights to some power: the larger, the heavier their tails and the smaller the entropy of their codes."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return value.sign() * value.abs() ** tails


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 600), st.sampled_from([0.0, 0.01, 0.3, 2.0, 50.0]), st.integers(0, 99))
def test_a_stream_is_exact_and_within_a_bit_a_symbol_of_the_entropy(width, count, skew, seed):
    symbols = drawn(width, count, skew, seed)
    stream = huffman.encoded(symbols, width)
    back, used = huffman.read(np.append(stream, [1, 2, 3]).astype(np.uint8), width)
    assert (back == symbols).all()
    assert used == len(stream) == huffman.encoded_bytes(symbols, width)
    body = len(stream) - huffman.COUNT_BYTES - (1 << width) // 2
    assert count * entropy(symbols) / 8 - 1e-6 <= body <= count * (entropy(symbols) + 1) / 8 + 1


@pytest.mark.parametrize("symbols", [[], [7], [7] * 1000])
def test_an_alphabet_of_none_or_one(symbols):
    stream = huffman.encoded(np.array(symbols, np.int64), 3)
    assert huffman.read(stream, 3)[0].tolist() == symbols
    assert len(stream) == huffman.COUNT_BYTES + 4 + -(-len(symbols) // 8)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=4, max_size=4))
def test_no_other_prefix_code_is_shorter(counts):
    found = lengths_of(np.repeat(np.arange(4), counts), 2)
    codes = [own for own in product(range(1, 4), repeat=4) if sum(2.0**-length for length in own) <= 1]
    assert np.dot(counts, found) == min(np.dot(counts, own) for own in codes)


def test_codewords_are_those_of_the_textbook():
    stream = huffman.encoded(np.array([2, 0, 0, 3, 2, 2, 1, 2]), 2)
    assert lengths_of(np.array([2, 0, 0, 3, 2, 2, 1, 2]), 2).tolist() == [2, 3, 1, 3]
    words = {2: "0", 0: "10", 1: "110", 3: "111"}  # by length, then by symbol
    bits = "".join(words[symbol] for symbol in (2, 0, 0, 3, 2, 2, 1, 2))
    assert stream[-2:].tolist() == [int(bits[:8], 2), int(bits[8:].ljust(8, "0"), 2)]


def test_no_codeword_is_longer_than_half_a_byte_can_say():
    counts = [1, 1]
    while len(counts) < 24:
        counts.append(counts[-1] + counts[-2])  # as deep a tree as there is
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(24), counts))
    assert lengths_of(symbols, 5).max() <= 15
    stream = huffman.encoded(symbols, 5)
    assert (huffman.read(stream, 5)[0] == symbols).all()
    deepest = [23, *range(23, 0, -1)]  # what is best without a limit
    assert 8 * (len(stream) - huffman.COUNT_BYTES - 16) < 1.001 * np.dot(counts, deepest)


@pytest.mark.parametrize("tails", [1.0, 3.0])
@pytest.mark.parametrize("text", FORMATS)
def test_codes_of_every_form_come_back(text, tails):
    format, shape = Format.parse(text), (16, 24, 3, 3)
    codes = quantize_weight(weight(shape, tails), format, 1).packed()["codes"].numpy()
    stream = coded(codes, format, shape, 1)
    assert len(stream) == coded_bytes(codes, format, shape, 1)
    assert (decoded(stream, format, shape, 1) == codes).all()


def test_channels_of_one_width_have_a_stream_of_their_own():
    layer = nn.Linear(600, 40)
    layer.weight.data = weight((40, 600), 2.0)
    bank, format = WeightBank(layer), Format.of_channels([2, 8] * 10 + [5] * 20)
    codes = bank.quantized("weight", format).packed()["codes"].numpy()
    stream = coded(codes, format, (40, 600), 0)
    assert (decoded(stream, format, (40, 600), 0) == codes).all()
    assert len(codes) - len(stream) == bank.saved("weight", format)
    rows = [list(range(0, 20, 2)), list(range(20, 40)), list(range(1, 20, 2))]
    apart = 0
    for own, bits in zip(rows, (2, 5, 8), strict=True):
        part = quantize_weight(layer.weight.detach()[own], Format("int", bits), 0).packed()["codes"].numpy()
        apart += coded_bytes(part, Format("int", bits), (len(own), 600), 0)
    assert len(stream) == apart


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 20000) | st.just(1), max_size=6), st.integers(1, 4))
def test_runs_of_ternary_zeros_come_back(runs, tail):
    trits = []
    for number, run in enumerate(runs):
        trits += [0] * run + [1 - 2 * (number % 2)]
    shape = (1, len(trits) + tail)
    stored = quantize_weight(torch.tensor([trits + [0] * tail], dtype=torch.float32), Format.parse("ternary"), 0)
    codes = stored.packed()["codes"].numpy()
    stream = coded(codes, stored.format, shape, 0)
    assert (decoded(stream, stored.format, shape, 0) == codes).all()
    assert len(stream) == coded_bytes(codes, stored.format, shape, 0)
    assert len(stream) <= huffman.COUNT_BYTES + 128 + 8 * len(runs) + 8, "a run is a few symbols, however long"


def test_a_run_of_ternary_zeros_is_its_length_in_binary():
    codes = np.array([0, *[ZEROS] * 11, 1, ZEROS], np.uint8)  # 11 = 8 + 2 + 1
    symbols, _ = huffman.read(coded(codes, Format.parse("ternary"), (1, 5 * len(codes)), 0), 8)
    assert symbols.tolist() == [0, ZEROS, FREE, FREE + 2, 1, ZEROS]


@pytest.mark.parametrize("text", ["w3", "w4", "ternary", "p4"])
def test_a_stream_that_was_cut_or_goes_on_is_refused(text):
    format, shape = Format.parse(text), (8, 100)
    codes = quantize_weight(weight(shape, 2.0), format, 0).packed()["codes"].numpy()
    stream = coded(codes, format, shape, 0)
    for cut in {0, 1, 4, 20, len(stream) // 2, len(stream) - 1}:
        with pytest.raises(ArtifactError):
            decoded(stream[:cut], format, shape, 0)
    with pytest.raises(ArtifactError, match="3 bytes follow the last codeword"):
        decoded(np.append(stream, [0, 0, 0]).astype(np.uint8), format, shape, 0)
    with pytest.raises(ArtifactError, match=r"in place of"):
        decoded(stream, format, (8, 120), 0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_bytes_are_codes_or_an_artifact_error(data):
    format = Format.parse(data.draw(st.sampled_from(["w3", "w4", "w[2,8]", "ternary", "p5"])))
    codes = np.frombuffer(data.draw(st.binary(min_size=50, max_size=50)), np.uint8) % FREE
    shape = {"w3": (1, 133), "w4": (1, 100), "w[2,8]": (2, 40), "ternary": (1, 250), "p5": (1, 80)}[str(format)]
    stream = coded(codes, format, shape, 0)
    assert (decoded(stream, format, shape, 0) == codes).all()
    for place, bit in data.draw(st.lists(st.tuples(st.integers(0, len(stream) - 1), st.integers(0, 7)), min_size=1)):
        stream[place] ^= 1 << bit
    with suppress(ArtifactError):
        assert len(decoded(stream, format, shape, 0)) == 50


class Tails(nn.Module):
    """Heavy tails, so that coding pays where a layer is large enough for it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 64)
        self.middle = nn.Linear(64, 96)
        self.small = nn.Linear(96, 2, bias=False)
        self.last = nn.Linear(96, 48)
        for seed, layer in enumerate((self.body, self.middle, self.last)):
            layer.weight.data = weight(layer.weight.shape, 1.5 + seed, seed) / 8

    def forward(self, z):
        h = self.middle(self.body(z).relu()).relu()
        return (self.last(h) + self.small(h).sum(1, keepdim=True)).tanh().reshape(-1, 3, 4, 4)


MAP = {"body.weight": "w4a8", "middle.weight": "ternary", "small.weight": "w3", "last.weight": "w[2*20,8*28]"}


@pytest.fixture
def tails():
    torch.manual_seed(0)
    return Tails().eval(), [(torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(2)]


def test_the_coded_file_is_smaller_and_the_same_generator(tails, tmp_path):
    model, batches = tails
    files = mpsearch.export(model, MAP, tmp_path, batches, ["packed", "coded"])
    plain, short = load_packed(files["packed"], Tails()), load_packed(files["coded"], Tails())
    assert torch.equal(plain(*batches[0]), short(*batches[0]))
    assert payload_bytes(files["coded"]) < 0.95 * payload_bytes(files["packed"])
    assert files["coded"].name == "generator.coded.safetensors"
    with safe_open(files["coded"], "pt") as file:
        header = json.loads(file.metadata()[METADATA])
    assert header["schema"] == "mpsearch-coded/1"
    assert {name: "coding" in entry for name, entry in header["layers"].items()} == {
        name: name in ("middle.weight", "last.weight") for name in MAP
    }


def test_no_file_is_longer_than_the_plain_one_and_bytes_are_those_predicted(case, tmp_path):
    model, batches = case
    layers = mpsearch.find_layers(model, batches[0])
    costs = cost_models(saved=WeightBank(model).saved)
    for text in ("w2", "w5a8", "ternary", "p3", "fp16"):
        format = Format.parse(text)
        bitmap = {layer.name: format if layer.allows(format) else format.weight_only for layer in layers}
        files = mpsearch.export(model, bitmap, tmp_path / text, batches, ["packed", "coded"], layers)
        size, short = (cost_of(name, bitmap, layers, costs) for name in ("size", "coded"))
        assert payload_bytes(files["coded"]) == short <= size == payload_bytes(files["packed"])


def test_weights_that_a_recovery_made_are_coded_as_they_are(tails, tmp_path):
    model, batches = tails
    bitmap = {"middle.weight": "w3", "last.weight": "w4"}
    bank = mpsearch.recover(model, bitmap, batches, "adaround", steps=30)
    assert any(
        bank.saved(name, Format.parse(f)) != WeightBank(model).saved(name, Format.parse(f))
        for name, f in bitmap.items()
    )
    path = mpsearch.export(model, bitmap, tmp_path, batches, "coded", bank=bank)["coded"]
    with mpsearch.quantized(model, bitmap, bank=bank) as small:
        assert torch.equal(load_packed(path, model)(*batches[0]), small(*batches[0]))


def test_broken_codes_in_a_file_are_refused_in_one_line(tails, tmp_path):
    model, batches = tails
    path = mpsearch.export(model, MAP, tmp_path, batches, "coded")["coded"]
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    whole = tensors["middle.weight#codes"]
    for change in (
        lambda codes: codes[:-2],
        lambda codes: torch.cat([codes[:4], codes[-400:]]),
        lambda codes: codes[:0],
    ):
        save_file(tensors | {"middle.weight#codes": change(whole).clone()}, path, about)
        with pytest.raises(
            ArtifactError, match=r"generator.coded.safetensors: the codes of middle.weight are trunc"
        ) as e:
            load_packed(path, model)
        assert "\n" not in str(e.value)
    for place in range(140, len(whole), 37):
        codes = whole.clone()
        codes[place] ^= 16
        save_file(tensors | {"middle.weight#codes": codes}, path, about)
        with pytest.raises(ArtifactError, match=r"the codes of middle.weight are .*corrupt"):
            load_packed(path, model)


# The cost


LAYERS = Layers(
    (
        Layer("a.weight", "Conv2d", (5, 3, 3, 3), 0, 1000, 64, 540, ("a.weight",)),
        Layer("b.weight", "Linear", (4, 9), 0, 36, 9, 144, ("b.weight",)),
    ),
    rest_bytes=50,
)


def test_coded_is_size_less_what_coding_saves():
    saved = {"w4": 7, "ternary": 2, "fp16": 0, "float": 0}
    cost = Coded(lambda layer, format: saved[str(format)] * (2 if layer == "b.weight" else 1))
    formats = parse_formats(["w4", "w4a8", "ternary", "fp16", "float", "w[2,4*3]"])
    table, size = cost(LAYERS, formats), cost_models()["size"](LAYERS, formats)
    np.testing.assert_array_equal((size.values - table.values)[:, :5], [[7, 7, 2, 0, 0], [14, 14, 4, 0, 0]])
    assert np.isnan(table.values[:, 5]).all(), "nobody measures mixtures"
    assert (table.measure, table.constant) == ("bytes", 50)


def test_a_budget_on_coded_bytes_holds_in_the_file_and_buys_more_than_one_on_plain_bytes(tails, tmp_path):
    model, batches = tails
    found = mpsearch.allocate(model, batches, ["coded<=16%"], effort="fast")
    files = mpsearch.export(model, found.bitmap, tmp_path, batches, ["packed", "coded"])
    assert payload_bytes(files["coded"]) == found.costs["coded"] <= found.limits["coded<=16%"]
    assert payload_bytes(files["packed"]) == found.costs["size"]
    plain = mpsearch.allocate(model, batches, ["size<=16%"], effort="fast")
    assert "coded" not in plain.costs, "measured only where it is asked for"
    assert found.costs["size"] > plain.limits["size<=16%"]
    assert found.error.value < 0.8 * plain.error.value


def test_the_smallest_coded_generator_that_is_good_enough(tails):
    model, batches = tails
    small = mpsearch.smallest(model, batches, "psnr>=30", "coded", effort="fast")
    assert small.target.cost == "coded"
    layers = mpsearch.find_layers(model, batches[0])
    costs = cost_models(saved=WeightBank(model).saved)
    assert small.costs["coded"] == cost_of("coded", small.bitmap, layers, costs) < small.costs["size"]


def test_under_a_budget_on_coded_bytes_layers_keep_one_width(tails):
    found = mpsearch.allocate(*tails, ["coded<=16%"], effort="fast", groups=3)
    assert all(format.channel_bits is None for format in found.bitmap.values())
    mixed = mpsearch.allocate(*tails, ["size<=16%"], effort="fast", groups=3)
    assert any(format.channel_bits for format in mixed.bitmap.values())
    layers = mpsearch.find_layers(tails[0], tails[1][0][0])
    assert math.isnan(cost_of("coded", mixed.bitmap, layers, cost_models(saved=WeightBank(tails[0]).saved)))


def test_without_weights_a_budget_on_coded_bytes_says_so(tails):
    model, batches = tails
    layers = mpsearch.find_layers(model, batches[0])
    table = mpsearch.estimate(model, batches, ["w4", "w8"])
    with pytest.raises(UsageError, match="the budget coded<=16% needs the weights: give the generator, or budget size"):
        mpsearch.search(table, layers, ["coded<=16%"])
    models = cost_models(saved=WeightBank(model).saved)
    assert mpsearch.search(table, layers, ["coded<=16%"], costs=models).costs["coded"] > 0
    assert len(mpsearch.frontier(table, layers, "coded", costs=models)) > 2


def test_a_run_with_a_budget_on_coded_bytes_writes_the_coded_file(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text("from test_entropy import Tails\n")
    config = "model: {factory: 'net.py:Tails'}\ninputs: [{kind: normal, shape: [8]}]\nformats: [w2, w4, w6]\n"
    config += "samples: {calibration: 8, heldback: 8, distances: 40, batch: 4}\neffort: fast\n"
    (tmp_path / "small.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["run", "small.yaml", "--budget", "coded<=16%"])
    assert shown.exit_code == 0, shown.output
    folder = tmp_path / "runs" / "small"
    spent = json.loads((folder / "bitmap.json").read_text())["costs"]
    assert payload_bytes(folder / "export" / "generator.coded.safetensors") == spent["coded"]
    assert payload_bytes(folder / "export" / "generator.safetensors") == spent["size"]
    shown = CliRunner().invoke(app, ["export", "small.yaml", "--out", "plain", "--coded"])
    assert shown.exit_code == 0, shown.output
    assert "coded: plain/export/generator.coded.safetensors" in shown.output


def test_a_map_is_coded_under_every_name_of_a_tied_layer(tmp_path):
    from conftest import MODELS, build

    model, batches = build("attentive"), MODELS["attentive"][1]()
    bitmap = BitMap({"right.weight": "w2"})
    path = mpsearch.export(model, bitmap, tmp_path, batches, "coded")["coded"]
    assert load_packed(path, model).left.weight.unique().numel() <= 4 * 16
