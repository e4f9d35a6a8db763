import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mpsearch import ArtifactError, BitMap, Format, UsageError, export, find_layers, load_packed, quantized
from mpsearch.calibration import Calibration, outputs
from mpsearch.export import EXPORTERS, read_map
from mpsearch.quant.stored.packing import pack, unpack


@settings(deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(-127, 127), min_size=1, max_size=40))
def test_packing_is_dense_and_reversible(bits, values):
    top = 2 ** (bits - 1) - 1
    codes = np.clip(np.array(values, np.int8), -top, top)
    packed = pack(codes, bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert (unpack(packed, bits, len(codes)) == codes).all()


def mixed_map(model, batches):
    layers = find_layers(model, batches[0])
    cycle = ["w3a8", "w2", "fp16", "w8a4", "float", "w5", "a6"]
    formats = {}
    for index, layer in enumerate(layers):
        (formats[layer.name],) = layers.choices(layer, [BitMap({"x": cycle[index % len(cycle)]})["x"]])
        if index % 3 == 2:
            widths = torch.randint(2, 9, (layer.channels,), generator=torch.Generator().manual_seed(index)).tolist()
            formats[layer.name] = Format.of_channels(widths, formats[layer.name].act_bits)
    return layers, BitMap(formats)


def test_the_packed_generator_computes_what_the_map_computes(case, tmp_path, snapshot):
    from conftest import MODELS

    model, batches = case
    layers, bitmap = mixed_map(model, batches)
    shot = snapshot(model)
    files = export(model, bitmap, tmp_path, batches, layers=layers)
    shot.check()
    stored = read_map(files["json"])
    calibration = Calibration.of(batches)
    with quantized(model, stored):
        expected = outputs(model, calibration)
    other = next(type(model)() for build, _ in MODELS.values() if isinstance(model, build))
    loaded = load_packed(files["packed"], other)
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(loaded, calibration), strict=True))
    assert not loaded.training


def test_every_kind_of_map_reads_back(deconv, tmp_path):
    model, batches = deconv
    files = export(
        model, {"main.0.weight": "w3a8", "main.3.weight": "float", "main.5.weight": "w8"}, tmp_path, batches, EXPORTERS
    )
    assert set(files) == set(EXPORTERS)
    maps = [read_map(files[kind]) for kind in ("json", "yaml", "csv")]
    assert maps[0] == maps[1] == maps[2]
    assert maps[0]["main.0.weight"].act_bits == 8
    ((low, high, _),) = maps[0].ranges["main.0.weight"]
    assert low < 0 < high
    entry = json.loads(files["json"].read_text())["layers"]["main.5.weight"]
    assert (entry["weight_bits"], entry["act_bits"]) == (8, None)


def test_maps_written_by_hand_need_only_the_two_widths(tmp_path):
    path = tmp_path / "map.json"
    layers = {"a.weight": {"weight_bits": 4, "act_bits": None}, "b.weight": {"weight_bits": 16, "act_bits": 8}}
    path.write_text(json.dumps({"layers": layers}))
    assert {n: str(f) for n, f in read_map(path).items()} == {"a.weight": "w4", "b.weight": "fp16a8"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"layers": {"a": {"format": "w9"}}}', '{"layers": 3}', '{"layers": {"a": {}}}']
)
@pytest.mark.parametrize("kind", ["json", "yaml", "csv"])
def test_files_that_are_no_maps_are_refused(tmp_path, text, kind):
    path = tmp_path / f"map.{kind}"
    path.write_text(text or "\x00")
    with pytest.raises(ArtifactError, match=r"is no bit map"):
        read_map(path)


def test_truncated_and_foreign_packed_files_are_refused(deconv, tmp_path):
    model, batches = deconv
    path = export(model, {"main.0.weight": "w3"}, tmp_path, batches, kinds=["packed"])["packed"]
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtifactError, match="is no safetensors file, or a truncated one"):
            load_packed(path, model)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match=r"has schema None, expected 'mpsearch-packed/1'"):
        load_packed(path, model)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_packed(tmp_path / "missing.safetensors", model)


def test_a_packed_file_for_another_architecture_is_refused(deconv, tmp_path):
    from conftest import build

    model, batches = deconv
    path = export(model, {"main.0.weight": "w3"}, tmp_path, batches, kinds=["packed"])["packed"]
    with pytest.raises(ArtifactError, match="does not fit the model"):
        load_packed(path, build("styled"))


def test_unknown_kinds_and_layers_are_refused(deconv, tmp_path):
    model, batches = deconv
    with pytest.raises(UsageError, match="unknown export 'onnx'"):
        export(model, {}, tmp_path, batches, kinds=["onnx"])
    with pytest.raises(UsageError, match=r"no layer 'main.9.weight'"):
        export(model, {"main.9.weight": "w4"}, tmp_path, batches)
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_stored_once(tmp_path):
    from conftest import MODELS, build

    model, batches = build("attentive"), MODELS["attentive"][1]()
    files = export(model, {}, tmp_path, batches, kinds=["packed"])
    stored = load_file(files["packed"])
    assert "left.weight" in stored
    assert "right.weight" not in stored


@pytest.mark.parametrize(
    "payload",
    [
        {  # ModelOpt 0.47, get_auto_quantize_config
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "main.0.weight_quantizer", "cfg": {"num_bits": 4, "axis": 0}},
                {"quantizer_name": "main.0.input_quantizer", "enable": False},
                {"quantizer_name": "main.3.weight_quantizer", "enable": False},
            ],
            "algorithm": "max",
        },
        {
            "quant_cfg": {
                "*": {"enable": False},
                "main.0.weight_quantizer": {"num_bits": 4},
                "main.3.weight_quantizer": {},
            }
        },
        {  # AIMET, encodings of version 0.6.1 and of 1.0.0
            "activation_encodings": {},
            "param_encodings": {
                "main.0": [{"bitwidth": 4, "min": -1.0, "max": 1.0}] * 3,
                "main.3": [{"bitwidth": 32, "dtype": "float"}],
                "main.0.bias": [{"bitwidth": 32}],
            },
        },
        {
            "version": "1.0.0",
            "param_encodings": [{"name": "main.0", "bw": 4, "scale": [1.0]}, {"name": "main.3", "bw": 32}],
        },
        {"layer_config": {"main.0": {"bits": 4, "act_bits": 16}, "main.3": {"bits": 32}}},  # auto-round
        {"main.0": 4, "main.3": None},
    ],
)  # fmt: skip
def test_maps_of_other_tools(tmp_path, payload):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(payload))
    assert read_map(path) == BitMap({"main.0": "w4", "main.3": "float"})


def test_a_pattern_of_another_tool_is_no_map(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4}}]}')
    with pytest.raises(ArtifactError, match="pattern"):
        read_map(path)
