"""A local folder as diffusers saves it: a whole pipeline, or one model. Needs ``pip install 'mpsearch[diffusers]'``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.model import one_line
from mpsearch.zoo.state import refuse_misfits

WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
EARLY = "Transformer2DModel"  # DiTs among others


def load_diffusers(folder: Path, component: str | None = None) -> nn.Module:
    """A network of the folder, in evaluation mode and float32, with positional tensors in and one tensor out.

    ``UNet2DModel``: (images, timesteps), and class labels if it has classes. ``UNet2DConditionModel``: (latents,
    timesteps, encoder states). ``DiTTransformer2DModel``: (latents, timesteps, class labels). ``AutoencoderKL``: its
    decoder, of latents as ``decode`` takes them. Layers are named as in diffusers.

    Only these classes of diffusers itself are made, only safetensors are read, and nothing outside the folder.

    Args:
        folder: with ``model_index.json`` and a folder for each component, or with the ``config.json`` of one model.
        component: ``unet``, ``transformer``, ``vae`` …; by default the only one that can be quantized.

    Raises:
        UsageError: no such component, or several to choose from; diffusers is missing.
        ArtifactError: not such a folder, another class, pickled weights, weights that do not fit.
    """
    place = _component(folder, component)
    config = read_mapping(place / "config.json")
    kind = _kind(config)
    if kind not in KINDS:
        raise ArtifactError(f"{place} holds a {kind or 'model without _class_name'}, expected {', '.join(KINDS)}")
    if "quantization_config" in config:
        raise ArtifactError(f"{place} is quantized already: save it in full precision")
    variant = _variant(place)
    try:
        own = getattr(importlib.import_module("diffusers"), kind)
    except ImportError:
        raise UsageError(f"{folder} needs diffusers: pip install 'mpsearch[diffusers]'") from None
    try:
        model, found = own.from_pretrained(
            place,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file, or options that no version of the class has had
        raise ArtifactError(f"diffusers cannot load {place}: {one_line(error)}") from error
    shapes = {name: (stored, wanted) for name, stored, wanted in found["mismatched_keys"]}
    refuse_misfits(place, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), shapes)
    return KINDS[kind](model).eval()


def _component(folder: Path, component: str | None) -> Path:
    """The folder of one model."""
    if not folder.is_dir():
        raise ArtifactError(f"the diffusers folder {folder} does not exist")
    index = folder / "model_index.json"
    if not index.exists():
        if not (folder / "config.json").exists():
            raise ArtifactError(f"{folder} has no model_index.json and no config.json: not a diffusers folder")
        if component is not None:
            raise UsageError(
                f"{folder} is a single {_kind(read_mapping(folder / 'config.json'))}: leave {component!r} out"
            )
        return folder
    entries = {
        name: entry[1] for name, entry in read_mapping(index).items() if isinstance(entry, list) and len(entry) == 2
    }
    fitting = {name: kind for name, kind in entries.items() if kind in (*KINDS, EARLY)}
    names = ", ".join(f"{name} ({kind})" for name, kind in fitting.items()) or f"none of {', '.join(KINDS)}"
    if component is None:
        if len(fitting) != 1:
            raise UsageError(f"{folder} has {names}" + (": name one as component" if fitting else ""))
        (component,) = fitting
    if component not in fitting:
        raise UsageError(f"{folder} has no component {component!r} that can be quantized; it has {names}")
    if not (folder / component / "config.json").exists():
        raise ArtifactError(f"{folder / component} has no config.json, which {index.name} promises")
    return folder / component


def read_mapping(path: Path) -> dict[str, Any]:
    """A configuration as diffusers writes it."""
    try:
        payload = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ArtifactError(f"{path} holds a {type(payload).__name__}, expected a mapping")
    return payload


def _kind(config: Mapping[str, Any]) -> str:
    """The class that the config names; early DiTs were saved under that of all transformers."""
    kind = config.get("_class_name")
    if kind == EARLY and config.get("norm_type") == "ada_norm_zero":
        return "DiTTransformer2DModel"
    return str(kind or "")


def _variant(place: Path) -> str | None:
    """What stands between name and ending of the weights where only such are there: ``fp16``."""
    files = {path.name for path in place.iterdir()}
    whole = {f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json"}
    if files & whole:
        return None
    start, end = f"{WEIGHTS}.", ".safetensors"
    if others := sorted(name for name in files if name.startswith(start) and name.endswith(end)):
        return others[0][len(start) : -len(end)]
    if pickled := sorted(name for name in files if name.endswith(PICKLES)):
        raise ArtifactError(
            f"{place} holds pickled weights only ({pickled[0]}), which may run code: convert to safetensors"
        )
    raise ArtifactError(f"{place} has no {WEIGHTS}.safetensors")


class AutoencoderDecoder(nn.Module):
    """Latents ``(N, C, H, W)`` to images; the two parts of an ``AutoencoderKL`` that decode, under their own names."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv  # None in some
        self.decoder = autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
        return images


def _unet(self: Any, images: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    return _whole(self, images, timesteps, class_labels=labels)


def _conditional_unet(self: Any, latents: Tensor, timesteps: Tensor, encoder_states: Tensor) -> Tensor:
    return _whole(self, latents, timesteps, encoder_hidden_states=encoder_states)


def _transformer(self: Any, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    return _whole(self, latents, timesteps, class_labels=labels)


def _whole(model: Any, *inputs: Tensor, **more: Tensor | None) -> Tensor:
    """What the class of diffusers itself computes."""
    own: Any = type(model).__bases__[0]
    found: Tensor = own.forward(model, *inputs, **more, return_dict=False)[0]
    return found


def _calling(forward: Callable[..., Tensor]) -> Callable[[nn.Module], nn.Module]:
    """The same object, of a subclass with another ``forward``: no name of a layer changes, as in a wrapper it would."""

    def change(model: nn.Module) -> nn.Module:
        own = type(model)
        model.__class__ = type(own.__name__, (own,), {"forward": forward})
        return model

    return change


KINDS: Mapping[str, Callable[[Any], nn.Module]] = {
    "UNet2DModel": _calling(_unet),
    "UNet2DConditionModel": _calling(_conditional_unet),
    "DiTTransformer2DModel": _calling(_transformer),
    "AutoencoderKL": AutoencoderDecoder,
}
