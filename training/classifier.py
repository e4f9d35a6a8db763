"""Train the Fashion-MNIST classifier whose features define the embedded Fréchet distance; resumes by epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mpsearch.zoo.classifier import FashionClassifier
from training import checkpoint, options
from training.data import fashion_mnist


@torch.no_grad()
def accuracy(model: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(sum(hits)) / len(labels)


def jitter(images: Tensor) -> Tensor:
    """Each image mirrored or not, and all moved by up to two pixels: the empty border is two pixels wide."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    shift = torch.randint(-2, 3, (2,)).tolist()
    return images.roll(shift, (2, 3))


def train(config: dict[str, Any]) -> None:
    work = Path(config["work"])
    torch.manual_seed(config["seed"])
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    model = FashionClassifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config["weight_decay"])
    steps = len(images) // config["batch"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config["learning_rate"], config["epochs"] * steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    epoch, seconds = 0, 0.0
    if state := checkpoint.resume(work / "last.pt", parts):
        epoch, seconds = state["epoch"], state["seconds"]
    started = time.monotonic()
    while epoch < config["epochs"]:
        model.train()
        for picks in torch.randperm(len(images))[: steps * config["batch"]].split(config["batch"]):
            batch = jitter(images[picks]).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(batch).float(), labels[picks], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        epoch += 1
        spent = seconds + time.monotonic() - started
        checkpoint.keep(work / "last.pt", parts, epoch=epoch, seconds=spent)
        score = accuracy(model, test_images, test_labels)
        facts = {"epoch": str(epoch), "seconds": f"{spent:.0f}", "test_accuracy": f"{score:.4f}"}
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, work / "classifier.safetensors", facts)
        print(f"epoch {epoch} test accuracy {score:.4f} {spent:.0f} s", flush=True)


if __name__ == "__main__":
    train(options.read(__doc__))
