"""Train the embedded diffusion U-Net on Fashion-MNIST; killed runs resume from the last checkpoint.

Velocity prediction on a cosine schedule (Salimans, Ho, ICLR 2022), timesteps spread evenly over a batch (Kingma et al.,
NeurIPS 2021); the shipped weights are an exponential moving average. ``pipeline`` in the work folder is a diffusers
pipeline: ``DDIMPipeline.from_pretrained`` reads it.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor

from mpsearch.report import save_grid
from mpsearch.zoo.diffusion import Sampler
from mpsearch.zoo.pretrained import WEIGHTS
from training import checkpoint, options
from training.data import fashion_mnist
from training.sagan import average

PARTS = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}


def spread(count: int, steps: int) -> Tensor:
    """Random timesteps, one in each ``count``-th part of ``0 … steps - 1``, ``(count,)`` int64."""
    return ((torch.arange(count) + torch.rand(1)) / count % 1 * steps).long()


def loss_of(unet: UNet2DModel, scheduler: DDIMScheduler, images: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity."""
    t = spread(len(images), scheduler.config.num_train_timesteps)
    noise = torch.randn_like(images)
    predicted = unet(scheduler.add_noise(images, noise, t), t).sample
    return F.mse_loss(predicted, scheduler.get_velocity(images, noise, t))


def save_pipeline(unet: UNet2DModel, scheduler: DDIMScheduler, folder: Path, facts: dict[str, str]) -> None:
    """A diffusers folder; ``facts`` go into the header of the weights."""
    unet.save_config(folder / "unet")
    scheduler.save_config(folder / "scheduler")
    save_file(unet.state_dict(), folder / "unet" / f"{WEIGHTS}.safetensors", {"format": "pt", **facts})
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline", **PARTS}, indent=2) + "\n")


@torch.no_grad()
def samples(unet: UNet2DModel, scheduler: DDIMScheduler, seed: int) -> Tensor:
    noise = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    images: Tensor = Sampler(unet, scheduler.config).eval()(noise)
    return images


def train(config: dict[str, Any]) -> None:
    work = Path(config["work"])
    torch.manual_seed(config["seed"])
    images, _ = fashion_mnist("train")
    unet, scheduler = UNet2DModel(**config["unet"]), DDIMScheduler(**config["schedule"])
    ema = copy.deepcopy(unet).eval()
    optimizer = torch.optim.Adam(unet.parameters(), config["learning_rate"])
    parts = {"unet": unet, "ema": ema, "optimizer": optimizer}
    step, seconds = 0, 0.0
    if state := checkpoint.resume(work / "last.pt", parts):
        step, seconds = state["step"], state["seconds"]
    started, losses = time.monotonic(), []
    while step < config["steps"]:
        left = 1 - step / config["steps"]
        rate = min(1.0, (step + 1) / config["warm_up"]) * (0.1 + 0.9 * left)
        optimizer.param_groups[0]["lr"] = config["learning_rate"] * rate
        loss = loss_of(unet, scheduler, images[torch.randint(len(images), (config["batch"],))])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(loss.item())
        average(ema, unet, min(config["ema"], step / (step + 10)))
        if step % config["checkpoint_every"] == 0 or step == config["steps"]:
            spent = seconds + time.monotonic() - started
            checkpoint.keep(work / "last.pt", parts, step=step, seconds=spent)
            save_pipeline(ema, scheduler, work / "pipeline", {"step": str(step), "seconds": f"{spent:.0f}"})
            save_grid(work / "samples.png", {f"step {step}": samples(ema, scheduler, config["seed"])})
            print(f"step {step} loss {sum(losses) / len(losses):.4f} {spent:.0f} s", flush=True)
            losses.clear()


if __name__ == "__main__":
    train(options.read(__doc__))
