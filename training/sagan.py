"""Train the embedded Self-Attention GAN on Fashion-MNIST; killed runs resume from the last checkpoint.

Hinge loss, two time-scale updates and spectral norm on both sides as in the SAGAN paper (ICML 2019);
the shipped weights are an exponential moving average whose batch statistics are measured afresh.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mpsearch.zoo.sagan import LATENT, SAGANGenerator, SelfAttention
from training import checkpoint, options
from training.data import fashion_mnist


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        return F.avg_pool2d(self.conv2(F.relu(h)), 2) + self.skip(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """Images ``(N, 1, 32, 32)`` to one score each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            DownBlock(1, 32, first=True), SelfAttention(32), DownBlock(32, 64), DownBlock(64, 128)
        )
        self.conv1 = spectral_norm(nn.Conv2d(128, 128, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(128, 128, 3, padding=1))
        self.score = spectral_norm(nn.Linear(128, 1))

    def forward(self, images: Tensor) -> Tensor:
        h = self.body(images)
        h = h + self.conv2(F.relu(self.conv1(F.relu(h))))
        return self.score(F.relu(h).sum((2, 3)))


@torch.no_grad()
def average(ema: nn.Module, live: nn.Module, decay: float) -> None:
    for slow, fast in zip(ema.state_dict().values(), live.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)


@torch.no_grad()
def settle(ema: SAGANGenerator, seed: int, batches: int = 100) -> SAGANGenerator:
    """A copy with converged spectral norms and batch statistics measured on ``batches * 100`` latents."""
    model = copy.deepcopy(ema)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative average
    model.train()
    for _ in range(batches):
        model(torch.randn(100, LATENT, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


@torch.no_grad()
def grid(model: nn.Module, path: Path, seed: int, rows: int = 8) -> None:
    latents = torch.randn(rows * rows, LATENT, generator=torch.Generator().manual_seed(seed))
    pixels = model(latents).add(1).mul(127.5).round().clamp(0, 255).byte()
    sheet = pixels.reshape(rows, rows, 32, 32).permute(0, 2, 1, 3).reshape(rows * 32, rows * 32)
    Image.fromarray(sheet.numpy()).save(path)


def train(config: dict[str, Any]) -> None:
    work = Path(config["work"])
    torch.manual_seed(config["seed"])
    images, _ = fashion_mnist("train")
    generator, judge = SAGANGenerator(), Discriminator()
    ema = copy.deepcopy(generator)
    for net in (generator, judge):
        net.to(memory_format=torch.channels_last)
    betas = tuple(config["betas"])
    optim_g = torch.optim.Adam(generator.parameters(), config["generator_lr"], betas)
    optim_d = torch.optim.Adam(judge.parameters(), config["discriminator_lr"], betas)
    parts = {"generator": generator, "judge": judge, "ema": ema, "optim_g": optim_g, "optim_d": optim_d}
    step, seconds = 0, 0.0
    if state := checkpoint.resume(work / "last.pt", parts):
        step, seconds = state["step"], state["seconds"]
    batch = config["batch"]
    started = time.monotonic()
    while step < config["steps"]:
        real = images[torch.randint(len(images), (batch,))]
        real = real.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                fake = generator(torch.randn(batch, LATENT))
            loss_d = F.relu(1 - judge(real).float()).mean() + F.relu(1 + judge(fake).float()).mean()
        optim_d.zero_grad()
        loss_d.backward()
        optim_d.step()
        with torch.autocast("cpu", torch.bfloat16):
            judge.requires_grad_(False)
            loss_g = -judge(generator(torch.randn(batch, LATENT))).float().mean()
        optim_g.zero_grad()
        loss_g.backward()
        judge.requires_grad_(True)
        optim_g.step()
        step += 1
        average(ema, generator, min(config["ema"], step / (step + 10)))
        if step % config["checkpoint_every"] == 0 or step == config["steps"]:
            spent = seconds + time.monotonic() - started
            checkpoint.keep(work / "last.pt", parts, step=step, seconds=spent)
            settled = settle(ema, config["seed"])
            save_file(
                settled.state_dict(), work / "generator.safetensors", {"step": str(step), "seconds": f"{spent:.0f}"}
            )
            grid(settled, work / "samples.png", config["seed"])
            print(f"step {step} D {loss_d.item():.3f} G {loss_g.item():.3f} {spent:.0f} s", flush=True)


if __name__ == "__main__":
    train(options.read(__doc__))
