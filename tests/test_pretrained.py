"""Folders that diffusers itself saved, loaded by the real code."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mpsearch
from mpsearch import ArtifactError, UsageError, quantized
from mpsearch.config import load_config
from mpsearch.model import copy_of
from mpsearch.run import Run
from mpsearch.zoo import load_diffusers

diffusers = pytest.importorskip("diffusers")

T = torch.tensor([3, 700])
WIDTHS = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def unet(**more):
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    size = {"in_channels": 1, "out_channels": 1, "attention_head_dim": 8}
    return diffusers.UNet2DModel(**WIDTHS, **size, down_block_types=down, up_block_types=up, **more)


def conditional():
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    size = {"in_channels": 2, "out_channels": 2, "attention_head_dim": 4, "cross_attention_dim": 12}
    return diffusers.UNet2DConditionModel(**WIDTHS, **size, down_block_types=down, up_block_types=up)


def transformer():
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    return diffusers.DiTTransformer2DModel(**size, in_channels=2, out_channels=2, num_embeds_ada_norm=10)


def autoencoder(**more):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**blocks, block_out_channels=(8, 16), norm_num_groups=4, latent_channels=2, **more)


# How the class is made, our positional inputs, and what diffusers itself says of them.
CASES = {
    "unet": (unet, (randn(2, 1, 8, 8), T), lambda m, x, t: m(x, t).sample),
    "unet with classes": (
        lambda: unet(num_class_embeds=3),
        (randn(2, 1, 8, 8), T, torch.tensor([2, 0])),
        lambda m, x, t, y: m(x, t, class_labels=y).sample,
    ),
    "conditional unet": (
        conditional,
        (randn(2, 2, 8, 8), T, randn(2, 5, 12)),
        lambda m, x, t, c: m(x, t, encoder_hidden_states=c).sample,
    ),
    "transformer": (
        transformer,
        (randn(2, 2, 8, 8), T, torch.tensor([9, 4])),
        lambda m, x, t, y: m(x, timestep=t, class_labels=y).sample,
    ),
    "decoder": (autoencoder, (randn(2, 2, 4, 4),), lambda m, z: m.decode(z).sample),
    "bare decoder": (
        lambda: autoencoder(use_post_quant_conv=False),
        (randn(2, 2, 4, 4),),
        lambda m, z: m.decode(z).sample,
    ),
}


def made(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_diffusers_and_a_map_is_found(case, tmp_path):
    build, inputs, call = CASES[case]
    own = made(build)
    own.save_pretrained(tmp_path)
    model = load_diffusers(tmp_path)
    with torch.no_grad():
        expected = call(own, *inputs)
        assert torch.equal(model(*inputs), expected)
        assert torch.equal(copy_of(model)(*inputs), expected)
    assert not model.training

    solution = mpsearch.allocate(model, [inputs], ["bits<=4"], ["w2", "w4", "w8"], effort="fast")
    names = {f"{name}.weight" for name, m in own.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
    used = {name for name in names if not name.startswith(("encoder.", "quant_conv."))}
    assert used <= set(solution.bitmap) <= set(own.state_dict())  # every layer, named as in diffusers
    w4 = mpsearch.BitMap({name: mpsearch.Format.parse("w4") for name in solution.bitmap})
    with quantized(model, w4), torch.no_grad():
        assert not torch.equal(model(*inputs), expected)
    with torch.no_grad():
        assert torch.equal(model(*inputs), expected)


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of a U-Net and a scheduler."""
    diffusers.DDPMPipeline(made(unet), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def add_vae(pipeline):
    made(autoencoder).save_pretrained(pipeline / "vae")
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))


def test_components_by_name(pipeline):
    inputs = (randn(2, 1, 8, 8), T)
    with torch.no_grad():
        expected = made(unet)(*inputs).sample
        for component in (None, "unet"):
            assert torch.equal(load_diffusers(pipeline, component)(*inputs), expected)
    add_vae(pipeline)
    with pytest.raises(UsageError, match=r"has unet \(UNet2DModel\), vae \(AutoencoderKL\): name one as component"):
        load_diffusers(pipeline)
    assert load_diffusers(pipeline, "vae")(randn(1, 2, 4, 4)).shape == (1, 3, 8, 8)
    assert load_diffusers(pipeline, "unet")(*inputs).shape == (2, 1, 8, 8)


def test_from_a_config(pipeline, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: {diffusers: pipe, component: unet}\n"
        "inputs: [{kind: normal, shape: [1, 8, 8]}, {kind: integers, classes: 1000}]\n"
        "samples: {calibration: 4, heldback: 4, distances: 8, batch: 2}\n"
        "formats: [w2, w4, w8]\neffort: fast\n"
    )
    run = Run(load_config(tmp_path / "run.yaml"), tmp_path / "out")
    assert run.solution.costs["bits"] <= 4
    assert "unet of pipe under bits<=4" in run.report().read_text()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"diffusers": "pipe", "factory": "net.py:build"}, "a diffusers folder brings its own .*: leave out factory"),
        ({"diffusers": "pipe", "options": {}, "weights": "w"}, "leave out options, weights"),
        ({"component": "unet"}, "the component 'unet' needs the diffusers folder that it is in"),
    ],
)
def test_configs_that_say_two_things(model, message):
    with pytest.raises(UsageError, match=message):
        load_config(model=model)


def refused(kind, message, *arguments):
    with pytest.raises(kind, match=message) as caught:
        load_diffusers(*arguments)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_something_else(pipeline, tmp_path):
    refused(UsageError, r"no component 'vae' that can be quantized; it has unet \(UNet2DModel\)", pipeline, "vae")
    refused(UsageError, r"no component 'scheduler' that can be .*; it has unet \(UNet2DModel\)", pipeline, "scheduler")
    refused(UsageError, "is a single UNet2DModel: leave 'unet' out", pipeline / "unet", "unet")
    refused(ArtifactError, "the diffusers folder .*nowhere does not exist", tmp_path / "nowhere")
    refused(ArtifactError, "has no model_index.json and no config.json: not a diffusers folder", tmp_path)
    (pipeline / "unet" / "config.json").unlink()
    refused(ArtifactError, "unet has no config.json, which model_index.json promises", pipeline)
    (pipeline / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDPMScheduler"]}))
    refused(UsageError, "has none of UNet2DModel, UNet2DConditionModel, DiT", pipeline)
    (pipeline / "model_index.json").write_text("{")
    refused(ArtifactError, "model_index.json is not valid JSON", pipeline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "holds a VQModel, expected UNet2DModel, UNet2DConditionModel"),
        ({"_class_name": "subprocess.Popen"}, "holds a subprocess.Popen, expected UNet2DModel"),
        ({"_class_name": None}, "holds a model without _class_name, expected"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantized already: save it in full precision"),
        ({"block_out_channels": 3}, "diffusers cannot load .*unet: "),
    ],
)
def test_configs_of_models_that_are_not_made(pipeline, change, message):
    path = pipeline / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(ArtifactError, message, pipeline)


def test_weights_that_do_not_fit_are_listed(pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.bias"]
    save_file({**state, "extra": torch.zeros(1), "conv_out.weight": torch.zeros(1, 8, 5, 5)}, path, {"format": "pt"})
    shapes = r"conv_out.weight is \(1, 8, 5, 5\), the model has \(1, 8, 3, 3\)"
    message = (
        f"unet does not fit the model in 3 entries: conv_in.bias is missing; extra is unknown to the model; {shapes}"
    )
    refused(ArtifactError, message, pipeline)
    path.write_bytes(path.read_bytes()[:100])
    refused(ArtifactError, "diffusers cannot load .*unet: ", pipeline)


def test_pickles_are_never_read(pipeline, tmp_path):
    folder = pipeline / "unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    refused(ArtifactError, "unet has no diffusion_pytorch_model.safetensors", pipeline)
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    message = r"holds pickled weights only \(diffusion_pytorch_model.bin\), which may run code: convert to safetensors"
    refused(ArtifactError, message, pipeline)


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "40KB"}])
def test_halves_and_shards(options, tmp_path):
    own = made(unet)
    own.save_pretrained(tmp_path, **options)
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    model = load_diffusers(tmp_path)
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_half_precision_becomes_float32(tmp_path):
    made(unet).half().save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_diffusers(tmp_path).state_dict().values()} == {torch.float32}


def test_a_transformer_saved_under_its_early_name(tmp_path):
    own = made(transformer)
    own.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "Transformer2DModel"}))
    inputs = CASES["transformer"][1]
    with torch.no_grad():
        assert torch.equal(load_diffusers(tmp_path)(*inputs), own(inputs[0], *inputs[1:]).sample)


def test_without_diffusers(pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(UsageError, r"needs diffusers: pip install 'mpsearch\[diffusers\]'", pipeline)
