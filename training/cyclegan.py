"""Train the embedded CycleGAN, sneakers to ankle boots and back; killed runs resume from the last checkpoint.

Zhu et al., ICCV 2017: least-squares adversarial losses on patches, cycle and identity loss, a buffer of
earlier fakes for the discriminators, a rate that falls to zero over the second half; the shipped weights
are exponential moving averages.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.report import save_grid
from mpsearch.zoo.cyclegan import CycleGANGenerator
from mpsearch.zoo.embedded import DIRECTIONS
from training import checkpoint, options
from training.data import CLASSES, fashion_mnist
from training.sagan import average

DOMAINS = {"sneaker": CLASSES.index("sneaker"), "boot": CLASSES.index("ankle boot")}
BUFFER = 50


class Discriminator(nn.Module):
    """Images ``(N, 1, 32, 32)`` to scores ``(N, 1, 6, 6)``, each of a patch that reaches 34 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.InstanceNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 4, 1, 1, bias=False),
            nn.InstanceNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def domain(split: str, name: str) -> Tensor:
    """The images of one domain, ``(N, 1, 32, 32)`` in [-1, 1]."""
    images, labels = fashion_mnist(split)
    return images[labels == DOMAINS[name]]


def recall(kept: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """(the buffer after, the fakes to judge): half of the fakes are swapped for earlier ones once it is full."""
    kept, shown = kept.clone(), fresh.clone()
    for index, fake in enumerate(fresh):
        if len(kept) < BUFFER:
            kept = torch.cat([kept, fake[None]])
        elif torch.rand(()) < 0.5:
            slot = int(torch.randint(BUFFER, ()))
            shown[index], kept[slot] = kept[slot].clone(), fake
    return kept, shown


def least_squares(scores: Tensor, wanted: float) -> Tensor:
    return (scores.float() - wanted).square().mean()


def start(name: str, seed: int) -> nn.Module:
    """A net with weights from N(0, 0.02), as in the paper."""
    net: nn.Module = CycleGANGenerator() if name == "generator" else Discriminator()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.02, generator=source) if parameter.ndim > 1 else parameter.zero_()
    return net.to(memory_format=torch.channels_last)


@torch.no_grad()
def pairs(models: nn.ModuleDict, path: Path) -> None:
    blocks = {}
    for direction in DIRECTIONS:
        source = domain("t10k", direction.split("2")[0])[:16]
        blocks[f"{direction}: source"] = source
        blocks[f"{direction}: translation"] = models[direction](source)
    save_grid(path, blocks)


def train(config: dict[str, Any]) -> None:
    work, seed = Path(config["work"]), config["seed"]
    torch.manual_seed(seed)
    real = {name: domain("train", name) for name in DOMAINS}
    live = nn.ModuleDict({d: start("generator", seed + i) for i, d in enumerate(DIRECTIONS)})
    judges = nn.ModuleDict({d: start("judge", seed + 2 + i) for i, d in enumerate(DIRECTIONS)})
    ema = copy.deepcopy(live)
    betas = tuple(config["betas"])
    optim_g = torch.optim.Adam(live.parameters(), config["learning_rate"], betas)
    optim_d = torch.optim.Adam(judges.parameters(), config["learning_rate"], betas)
    parts = {"live": live, "judges": judges, "ema": ema, "optim_g": optim_g, "optim_d": optim_d}
    buffers = {d: torch.empty(0, 1, 32, 32) for d in DIRECTIONS}
    step, seconds = 0, 0.0
    if state := checkpoint.resume(work / "last.pt", parts):
        buffers, step, seconds = state["buffers"], state["step"], state["seconds"]
    batch, steps = config["batch"], config["steps"]
    forth, back = DIRECTIONS
    began = time.monotonic()
    while step < steps:
        for group in (*optim_g.param_groups, *optim_d.param_groups):
            group["lr"] = config["learning_rate"] * min(1.0, 2 * (1 - step / steps))
        sneakers, boots = (
            images[torch.randint(len(images), (batch,))].to(memory_format=torch.channels_last)
            for images in real.values()
        )
        judges.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16, enabled=config["bfloat16"]):
            # Instance norm knows no batch: translation and identity may share one pass.
            fake_boots, same_boots = live[forth](torch.cat([sneakers, boots])).chunk(2)
            fake_sneakers, same_sneakers = live[back](torch.cat([boots, sneakers])).chunk(2)
            again_sneakers, again_boots = live[back](fake_boots), live[forth](fake_sneakers)
            scores = judges[forth](fake_boots), judges[back](fake_sneakers)
        cycle = F.l1_loss(again_sneakers.float(), sneakers) + F.l1_loss(again_boots.float(), boots)
        same = F.l1_loss(same_sneakers.float(), sneakers) + F.l1_loss(same_boots.float(), boots)
        fooled = least_squares(scores[0], 1) + least_squares(scores[1], 1)
        optim_g.zero_grad()
        (fooled + config["cycle"] * cycle + config["identity"] * same).backward()
        optim_g.step()
        judges.requires_grad_(True)
        loss_d = torch.zeros(())
        for direction, fresh, images in ((forth, fake_boots, boots), (back, fake_sneakers, sneakers)):
            buffers[direction], shown = recall(buffers[direction], fresh.detach().float())
            with torch.autocast("cpu", torch.bfloat16, enabled=config["bfloat16"]):
                false, true = judges[direction](torch.cat([shown, images])).chunk(2)
            loss_d = loss_d + 0.5 * (least_squares(true, 1) + least_squares(false, 0))
        optim_d.zero_grad()
        loss_d.backward()
        optim_d.step()
        step += 1
        average(ema, live, min(config["ema"], step / (step + 10)))
        if step % config["checkpoint_every"] == 0 or step == steps:
            spent = seconds + time.monotonic() - began
            checkpoint.keep(work / "last.pt", parts, buffers=buffers, step=step, seconds=spent)
            facts = {"step": str(step), "seconds": f"{spent:.0f}"}
            for direction in DIRECTIONS:
                weights = {k: v.contiguous() for k, v in ema[direction].state_dict().items()}
                save_file(weights, work / f"{direction}.safetensors", facts)
            pairs(ema, work / "samples.png")
            losses = f"D {loss_d.item():.3f} G {fooled.item():.3f} cycle {cycle.item():.4f} same {same.item():.4f}"
            print(f"step {step} {losses} {spent:.0f} s", flush=True)


if __name__ == "__main__":
    train(options.read(__doc__))
