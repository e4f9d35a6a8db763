"""Train the StyleGAN2-type generator on Fashion-MNIST; killed runs resume from the last checkpoint.

Non-saturating logistic loss, lazy R1 in float32, residual discriminator with minibatch deviation and equalised learning
rates as in the paper (CVPR 2020); the shipped weights are an exponential moving average.
"""

from __future__ import annotations

import copy
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.zoo.stylegan2 import LATENT, Layer, StyleGAN2Generator, fresh
from training import checkpoint, options
from training.data import fashion_mnist
from training.sagan import average, grid


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def conv(inputs: int, outputs: int, size: int = 3, gain: float = math.sqrt(2)) -> nn.Conv2d:
    """The gain of the leaky relu that follows is in the weights, not in the activations: one pass over them less."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    fresh(layer, gain)
    return layer


class DownBlock(nn.Module):
    """Residual block that halves height and width; both branches begin with half the variance."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, inputs)
        self.conv2 = conv(inputs, outputs, gain=1.0)
        self.skip = conv(inputs, outputs, size=1, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = leaky(self.conv2(F.avg_pool2d(leaky(self.conv1(x)), 2)))
        return h + self.skip(F.avg_pool2d(x, 2))


def with_deviation(x: Tensor, group: int = 4) -> Tensor:
    """One more channel: the standard deviation over every ``group``-th sample, its mean over channels and places."""
    group = math.gcd(len(x), group)
    y = x.float().reshape(group, -1, *x.shape[1:])
    spread = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
    return torch.cat([x, spread[:, None, None, None].expand(-1, 1, *x.shape[2:]).to(x.dtype)], 1)


class Discriminator(nn.Module):
    """Images ``(N, 1, 32, 32)`` to one score each."""

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 96, 128)) -> None:
        super().__init__()
        self.from_grey = conv(1, widths[0], size=1)
        self.body = nn.Sequential(*(DownBlock(*pair) for pair in pairwise(widths)))
        self.conv = conv(widths[3] + 1, widths[3])
        self.dense = nn.Linear(widths[3] * 4 * 4, widths[3])
        self.score = nn.Linear(widths[3], 1)
        fresh(self.dense, gain=math.sqrt(2))
        fresh(self.score)

    def forward(self, images: Tensor) -> Tensor:
        h = self.body(leaky(self.from_grey(images)))
        h = leaky(self.conv(with_deviation(h)))
        return self.score(leaky(self.dense(h.flatten(1))))


def equalized(model: nn.Module, rate: float, slow: float = 0.01) -> list[dict[str, Any]]:
    """Parameter groups for Adam; the mapping network learns at ``slow`` times the rate.

    Adam's steps do not depend on the scale of gradients, so a rate of ``rate / sqrt(fan-in)`` on plain weights is the
    equalised rate on weights of unit variance, multiplied at run time by ``1 / sqrt(fan-in)``.
    """
    rates: dict[float, list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            scale = slow if path.startswith("mapping") else 1.0
            if name == "weight":
                scale *= parameter[0].numel() ** -0.5
            rates.setdefault(rate * scale, []).append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in rates.items()]


def gradient_penalty(judge: nn.Module, real: Tensor) -> Tensor:
    """R1: the squared gradient of the score by the image, its mean over the batch."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def weight_at(schedule: dict[int, float], step: int) -> float:
    """The value of the latest entry: ``{0: 0.05, 3600: 0.01}`` is 0.05 for 3,600 steps, then 0.01."""
    return schedule[max(start for start in schedule if start <= step)]


def train(config: dict[str, Any]) -> None:
    work = Path(config["work"])
    torch.manual_seed(config["seed"])
    images, _ = fashion_mnist("train")
    generator, judge = StyleGAN2Generator(), Discriminator()
    ema = copy.deepcopy(generator).eval()
    for net in (generator, judge):
        net.to(memory_format=torch.channels_last)
    betas = tuple(config["betas"])
    optim_g = torch.optim.Adam(equalized(generator, config["generator_lr"]), betas=betas, fused=True)
    optim_d = torch.optim.Adam(equalized(judge, config["discriminator_lr"]), betas=betas, fused=True)
    parts = {"generator": generator, "judge": judge, "ema": ema, "optim_g": optim_g, "optim_d": optim_d}
    step, seconds = 0, 0.0
    if state := checkpoint.resume(work / "last.pt", parts):
        step, seconds = state["step"], state["seconds"]
    batch, every = config["batch"], config["penalty_every"]
    layers = [module for module in generator.modules() if isinstance(module, Layer)]
    started = time.monotonic()
    while step < config["steps"]:
        real = images[torch.randint(len(images), (batch,))]
        real = real.to(memory_format=torch.channels_last)
        for layer in layers:
            layer.limit = weight_at(config["cut_features"], step)
        with torch.autocast("cpu", torch.bfloat16):
            fake = generator(torch.randn(batch, LATENT))  # both players' losses are on these images
            if step >= config["cut_images_from"]:  # as in evaluation mode: real black is exactly -1
                fake = fake.clamp(-1, 1)
            loss_d = F.softplus(-judge(real).float()).mean() + F.softplus(judge(fake.detach()).float()).mean()
        optim_d.zero_grad()
        loss_d.backward()
        if step % every == 0:
            (weight_at(config["penalty"], step) / 2 * every * gradient_penalty(judge, real)).backward()
        optim_d.step()
        with torch.autocast("cpu", torch.bfloat16):
            judge.requires_grad_(False)
            loss_g = F.softplus(-judge(fake).float()).mean()
        optim_g.zero_grad()
        loss_g.backward()
        judge.requires_grad_(True)
        optim_g.step()
        step += 1
        average(ema, generator, min(config["ema"], step / (step + 10)))
        if step % config["checkpoint_every"] == 0 or step == config["steps"]:
            spent = seconds + time.monotonic() - started
            checkpoint.keep(work / "last.pt", parts, step=step, seconds=spent)
            facts = {"step": str(step), "seconds": f"{spent:.0f}"}
            save_file(ema.state_dict(), work / "generator.safetensors", facts)
            grid(ema, work / "samples.png", config["seed"])
            print(f"step {step} D {loss_d.item():.3f} G {loss_g.item():.3f} {spent:.0f} s", flush=True)


if __name__ == "__main__":
    train(options.read(__doc__))
