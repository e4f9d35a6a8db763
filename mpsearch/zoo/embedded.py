"""What ships inside the package: trained generators, and the classifier that judges them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.zoo.classifier import FashionClassifier
from mpsearch.zoo.cyclegan import CycleGANGenerator
from mpsearch.zoo.diffusion import Denoiser, Sampler, sampler
from mpsearch.zoo.loading import load_weights
from mpsearch.zoo.pretrained import load_diffusers
from mpsearch.zoo.sagan import SAGANGenerator
from mpsearch.zoo.stylegan2 import StyleGAN2Generator

WEIGHTS = Path(__file__).parent / "weights"
DIRECTIONS = ("sneaker2boot", "boot2sneaker")
DIFFUSION = WEIGHTS / "diffusion"  # a diffusers pipeline


def sagan() -> SAGANGenerator:
    """The trained generator; ``weights/sagan.md`` is its model card."""
    model = SAGANGenerator()
    load_weights(model, WEIGHTS / "sagan.safetensors")
    return model.eval()


def stylegan2(space: Literal["z", "w"] = "z") -> StyleGAN2Generator:
    """The trained StyleGAN2; ``weights/stylegan2.md`` is its model card.

    Args:
        space: what the generator reads: latents z ``(N, 64)`` from N(0, 1), or w ``(N, 64)``, what its mapping network
            makes of them. The layers of the synthesis have the same names in both.
    """
    if space not in ("z", "w"):
        raise UsageError(f"the space of stylegan2 is 'z' or 'w', not {space!r}")
    model = StyleGAN2Generator()
    load_weights(model, WEIGHTS / "stylegan2.safetensors")
    if space == "w":
        model.mapping = nn.Identity()
    return model.eval()


def stylegan2_mapping() -> nn.Module:
    """The mapping network of it, latents z to styles w."""
    return stylegan2().mapping


def diffusion(steps: int = 20) -> Sampler:
    """The trained diffusion model with its whole sampler; ``weights/diffusion.md`` is its model card."""
    return sampler(DIFFUSION, steps)


def diffusion_step() -> Denoiser:
    """One step of it: the bare U-Net."""
    return Denoiser(load_diffusers(DIFFUSION, "unet")).eval()


def cyclegan(direction: str = "sneaker2boot") -> CycleGANGenerator:
    """The trained translator of sneakers to ankle boots, or ``boot2sneaker``; ``weights/cyclegan.md`` is its card."""
    if direction not in DIRECTIONS:
        raise UsageError(f"no direction {direction!r}; there are {' and '.join(DIRECTIONS)}")
    model = CycleGANGenerator()
    load_weights(model, WEIGHTS / f"cyclegan_{direction}.safetensors")
    return model.eval()


def classifier() -> FashionClassifier:
    """The trained Fashion-MNIST classifier; ``weights/classifier.md`` is its model card."""
    model = FashionClassifier()
    load_weights(model, WEIGHTS / "classifier.safetensors")
    return model.eval()


def reference_path() -> Path:
    """Features of the 10,000 real test images."""
    return WEIGHTS / "fashion_mnist_test_features.safetensors"


@cache
def _shared_classifier() -> FashionClassifier:
    return classifier()


@torch.no_grad()
def fashion_features(images: Tensor) -> Tensor:
    """Images ``(N, 1, 32, 32)`` in [-1, 1] to classifier features ``(N, 64)``, computed on the CPU."""
    return _shared_classifier().features(images.float().cpu())
