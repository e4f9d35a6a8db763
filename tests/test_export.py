import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch import ArtifactError, BitMap, Format, UsageError, export, find_layers, load_packed, quantized
from mpsearch.calibration import Calibration, outputs
from mpsearch.export import EXPORTERS, addressed, read_map
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
    assert read_map(str(path)) == read_map(path)


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
        {  # version 2.0.0, where activations are in the same list
            "version": "2.0.0",
            "encodings": [
                {"name": "main.0.weight", "output_dtype": "int4", "y_scale": [0.1], "axis": 0},
                {"name": "main.3.weight", "output_dtype": "uint32", "y_scale": 0.1},
                {"name": "main.0.bias", "output_dtype": "int32", "y_scale": 0.1},
                {"name": "/main/main.0/Conv_output_0", "output_dtype": "uint8", "y_scale": 0.1, "y_zero_point": 3},
            ],
        },
        {"layer_config": {"main.0": {"bits": 4, "act_bits": 16}, "main.3": {"bits": 32}}},  # auto-round
        {"main.0": 4, "main.3": None},
    ],
)  # fmt: skip
def test_maps_of_other_tools(tmp_path, payload):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(payload))
    found = BitMap({name.removesuffix(".weight"): format for name, format in read_map(path).items()})
    assert found == BitMap({"main.0": "w4", "main.3": "float"})


def test_a_pattern_of_another_tool_is_no_map(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4}}]}')
    with pytest.raises(ArtifactError, match="pattern"):
        read_map(path)


def read(tmp_path, payload):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(payload))
    return read_map(str(path))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"bits": 4.5}, r"weight width 4\.5: use one of 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, \(4, 3\)"),
        (True, "weight width True: use"),
        ({"num_bits": [2, 1]}, r"weight width \[2, 1\]: use"),
        ({"num_bits": [[4], 3]}, r"weight width \[\[4\], 3\]: use"),
        ({"bits": "4"}, "weight width '4': use"),
        (0, "weight width 0: use"),
        (-4, "weight width -4: use"),
        (12, "weight width 12: use"),
        (24, "weight width 24: use"),
        (float("nan"), "weight width nan: use"),
        ({"bits": 4, "act_bits": 5}, "activation width 5: use one of 4, 6, 8, 16, 32"),
        ({"bits": 4, "act_bits": True}, "activation width True: use"),
    ],
)
def test_what_is_no_width_is_refused_with_its_layer(tmp_path, entry, problem):
    with pytest.raises(ArtifactError, match=rf"map\.json is no bit map: fc has the {problem}"):
        read(tmp_path, {"up": 8, "fc": entry})


def test_what_is_no_format_is_refused_with_its_layer(tmp_path):
    with pytest.raises(ArtifactError, match="fc: unknown format 'int4'"):
        read(tmp_path, {"up": 8, "fc": "int4"})
    with pytest.raises(ArtifactError, match=r"fc\.weight: unknown format 'float4e2m1'"):
        read(tmp_path, {"version": "2.0.0", "encodings": [{"name": "fc.weight", "output_dtype": "float4e2m1"}]})
    chain = {"quantizer_name": "fc.weight_quantizer", "cfg": [{"num_bits": 4}, {"num_bits": [4, 3]}]}
    with pytest.raises(
        ArtifactError, match=r"'fc\.weight_quantizer' is 2 quantizers, one after another: one is needed"
    ):
        read(tmp_path, {"quant_cfg": [chain]})


def test_widths_of_floats_are_read(tmp_path):
    given = {"a": 16, "b": {"bits": 32}, "c": {"num_bits": [4, 3]}, "d": {"bits": 8.0, "act_bits": 16}, "e": None}
    assert read(tmp_path, given) == BitMap({"a": "fp16", "b": "float", "c": "fp8", "d": "w8", "e": "float"})
    fp8 = {"quant_cfg": [{"quantizer_name": "c.weight_quantizer", "cfg": {"num_bits": [4, 3], "axis": None}}]}
    assert read(tmp_path, fp8) == BitMap({"c": "fp8"})
    typed = [{"name": f"{dtype}.weight", "output_dtype": dtype} for dtype in ("float8e4m3fn", "int16", "uint3")]
    found = read(tmp_path, {"version": "2.0.0", "encodings": typed})
    assert found == BitMap({"float8e4m3fn.weight": "fp8", "int16.weight": "fp16", "uint3.weight": "w3"})


class Foreign(nn.Module):
    """Names as they are found in the wild, one with capitals, and a tied pair."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.toRGB = nn.Linear(4, 4)
        self.Mid = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.Mid.weight

    def forward(self, x):
        return self.tied(self.Mid(self.toRGB(self.main(x))))


@pytest.fixture
def foreign():
    return find_layers(Foreign(), (torch.randn(2, 4),))


def test_an_exported_configuration_of_auto_round(tmp_path, foreign):
    payload = {
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "act_bits": 16,
        "quant_method": "auto-round",
        "extra_config": {"main.0": {"bits": 8}, "toRGB": {"group_size": 32}, "Mid": {"bits": 16, "data_type": "fp"}},
    }
    expected = {"main.0.weight": "w8", "main.2.weight": "w4", "toRGB.weight": "w4", "Mid.weight": "fp16"}
    assert addressed(read(tmp_path, payload), foreign, "m") == BitMap(expected)
    blocks = {"bits": 4, "quant_method": "auto-round", "block_name_to_quantize": "main"}
    left = {"main.0.weight": "w4", "main.2.weight": "w4", "toRGB.weight": "float", "Mid.weight": "float"}
    assert addressed(read(tmp_path, blocks), foreign, "m") == BitMap(left)
    with pytest.raises(ArtifactError, match=r"\* has the weight width 4\.5"):
        read(tmp_path, payload | {"bits": 4.5})
    with pytest.raises(UsageError, match=r"m: the pattern 'mian\.\*' matches no layer; the closest is 'main"):
        addressed(read(tmp_path, blocks | {"block_name_to_quantize": "mian"}), foreign, "m")


def test_a_pattern_spares_activations_that_a_layer_does_not_have(deconv):
    model, batches = deconv
    layers = find_layers(model, batches[0])
    uncalled = replace(layers, items=(replace(layers[0], act_elements=0), *layers[1:]))
    found = addressed(BitMap({"*": "w4a8"}), uncalled, "m")
    assert [str(format) for format in found.values()] == ["w4", "w4a8", "w4a8"]


@pytest.mark.parametrize(
    ("given", "layer"),
    [
        ("main_0", "main.0.weight"),
        ("main_0_weight", "main.0.weight"),
        ("main_2_bn", "main.2.weight"),  # MCT: a batch norm was folded into it
        ("MAIN.2", "main.2.weight"),
        ("torgb", "toRGB.weight"),
        ("to_rgb", "toRGB.weight"),
        ("mid", "Mid.weight"),
        ("tied", "Mid.weight"),
    ],
)
def test_names_as_other_tools_spell_them(foreign, given, layer):
    found = addressed(BitMap({given: "w3"}), foreign, "m")
    assert {name for name, format in found.items() if str(format) == "w3"} == {layer}


def test_names_of_an_fx_graph(foreign):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), Foreign())
    layers = find_layers(model, (torch.randn(2, 4),))
    nodes = [node for node in torch.fx.symbolic_trace(model).graph.nodes if node.op == "call_module"]
    names = [node.name for node in nodes if isinstance(model.get_submodule(node.target), nn.Linear)]
    assert "_1_to_rgb" in names
    found = addressed(BitMap(dict.fromkeys(names, "w3")), layers, "m")
    assert {str(format) for format in found.values()} == {"w3"}


def test_a_name_that_fits_two_layers_is_refused():
    model = nn.Sequential(OrderedDict(a_b=nn.Linear(4, 4), a=nn.Sequential(OrderedDict(b=nn.Linear(4, 4)))))
    layers = find_layers(model, (torch.randn(2, 4),))
    assert addressed(BitMap({"a_b": "w3"}), layers, "m")["a_b.weight"].bits == 3
    with pytest.raises(UsageError, match=r"m: 'A_B' may be a_b\.weight or a\.b\.weight: use one of these names"):
        addressed(BitMap({"A_B": "w3"}), layers, "m")


def test_two_names_of_a_tensor_take_one_format(foreign):
    assert str(addressed(BitMap({"Mid": "w3", "tied": "w3"}), foreign, "m")["Mid.weight"]) == "w3"
    for other in ("tied", "tied.weight", "mid"):
        with pytest.raises(UsageError, match=f"m: {other} is the same tensor as Mid: it cannot be w8 and w4"):
            addressed(BitMap({"Mid": "w4", other: "w8"}), foreign, "m")
