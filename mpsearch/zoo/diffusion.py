"""Diffusion U-Nets of the diffusers interface: the whole deterministic sampler as one generator, or one step of it.

Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021 (https://arxiv.org/abs/2010.02502). Nothing random
is drawn after the first noise (eta 0), so that a float and a quantized model that start from the same noise can be
compared image by image. Both modules here hold the U-Net as ``unet``: a bit map of one names the layers of the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.zoo.pretrained import load_diffusers, read_mapping

SCHEDULE = "scheduler_config.json"  # what diffusers calls it


class Denoiser(nn.Module):
    """One call of the U-Net: noisy images ``(N, C, H, W)`` and timesteps ``(N,)`` to a prediction like the images."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return predicted_by(self.unet, x, t)


class Sampler(nn.Module):
    """Noise ``(N, C, H, W)`` from N(0, 1) to images of the same shape in [-1, 1], ``steps`` calls of the U-Net.

    Equal to a loop over diffusers' ``DDIMScheduler`` with eta 0, from whose settings the coefficients are taken.
    """

    timesteps: Tensor
    alphas: Tensor

    def __init__(self, unet: nn.Module, schedule: Mapping[str, Any], steps: int = 20) -> None:
        """``unet``: see :func:`predicted_by`. ``schedule``: the configuration of a diffusers scheduler."""
        super().__init__()
        self.unet = unet
        scheduler = _scheduler(schedule, steps)
        config = scheduler.config
        self.predicts: str = config.prediction_type
        self.limit: float | None = config.clip_sample_range if config.clip_sample else None
        stride = config.num_train_timesteps // steps
        pairs = [(_alpha(scheduler, int(t)), _alpha(scheduler, int(t) - stride)) for t in scheduler.timesteps]
        self.register_buffer("timesteps", scheduler.timesteps.clone())  # (steps,), the noisiest first
        self.register_buffer("alphas", torch.tensor(pairs))  # (steps, 2): cumulative alpha of a step and of the next

    def forward(self, noise: Tensor) -> Tensor:
        *_, (_, _, images) = self._walk(noise)
        return images.clamp(-1, 1)

    def trajectory(self, noise: Tensor) -> list[tuple[Tensor, int]]:
        """What the U-Net reads, step by step: ``(x_t, t)`` with ``x_t`` like ``noise``."""
        return [(x, t) for x, t, _ in self._walk(noise)]

    def _walk(self, x: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """(x before the step, timestep, x after the step)."""
        for t, (alpha, following) in zip(self.timesteps, self.alphas, strict=True):
            after = self._step(x, predicted_by(self.unet, x, t.expand(len(x))), alpha, following)
            yield x, int(t), after
            x = after

    def _step(self, x: Tensor, predicted: Tensor, alpha: Tensor, following: Tensor) -> Tensor:
        """Formula (12) of the paper."""
        beta = 1 - alpha
        if self.predicts == "epsilon":
            image, noise = (x - beta**0.5 * predicted) / alpha**0.5, predicted
        elif self.predicts == "sample":
            image, noise = predicted, (x - alpha**0.5 * predicted) / beta**0.5
        else:  # v (Salimans, Ho, ICLR 2022)
            image, noise = alpha**0.5 * x - beta**0.5 * predicted, alpha**0.5 * predicted + beta**0.5 * x
        if self.limit is not None:
            image = image.clamp(-self.limit, self.limit)
        return following**0.5 * image + (1 - following) ** 0.5 * noise


def predicted_by(unet: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """``unet(x, t)``, or its ``sample`` as diffusers' own classes return it."""
    output = unet(x, t)
    prediction: Tensor = output if isinstance(output, Tensor) else output.sample
    return prediction


def _scheduler(schedule: Mapping[str, Any], steps: int) -> Any:
    longest = schedule.get("num_train_timesteps", 1000)
    if not 1 <= steps <= longest:
        raise UsageError(f"a trajectory of {steps} steps: a sampler takes 1 … {longest} of them")
    if schedule.get("thresholding"):
        raise UsageError("the schedule asks for dynamic thresholding, which is not supported: set it to false")
    try:
        own: Any = importlib.import_module("diffusers").DDIMScheduler
    except ImportError:
        raise UsageError("samplers need diffusers: pip install 'mpsearch[diffusers]'") from None
    scheduler = own.from_config(dict(schedule))
    scheduler.set_timesteps(steps)
    return scheduler


def _alpha(scheduler: Any, t: int) -> float:
    return float(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod)


def sampler(folder: str | Path, steps: int = 20) -> Sampler:
    """An unconditional pipeline as diffusers saves it, ``unet`` and ``scheduler``, with its whole sampler.

    Raises:
        UsageError: fewer than 1 step or more than the schedule has; diffusers is missing.
        ArtifactError: see :func:`load_diffusers`; the configuration of the scheduler cannot be read.
    """
    unet, schedule = load_diffusers(Path(folder), "unet"), read_mapping(Path(folder) / "scheduler" / SCHEDULE)
    return Sampler(unet, schedule, steps).eval()
