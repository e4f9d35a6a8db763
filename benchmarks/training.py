"""The shipped weights beside trainings repeated from other seeds (`python -m training.sagan … --seed 1`)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mpsearch.quality import Reference, distances
from mpsearch.zoo.classifier import FashionClassifier
from mpsearch.zoo.embedded import WEIGHTS, classifier, sagan
from mpsearch.zoo.sagan import LATENT, SAGANGenerator
from training.classifier import accuracy
from training.data import fashion_mnist

WORK, SAMPLES = Path("runs/training"), 10_000


@torch.no_grad()
def features(generator: SAGANGenerator) -> Tensor:
    latents = torch.randn(SAMPLES, LATENT, generator=torch.Generator().manual_seed(1))
    judge = classifier()
    return torch.cat([judge.features(generator(batch)) for batch in latents.split(200)])


def measure() -> list[dict[str, str]]:
    rows = []
    reference = Reference.load(WEIGHTS / "fashion_mnist_test_features.safetensors")
    generators = {"generator, shipped": sagan()}
    for path in sorted(WORK.glob("sagan-seed*/generator.safetensors")):
        generators[f"generator, {path.parent.name.removeprefix('sagan-')}"] = other = SAGANGenerator().eval()
        other.load_state_dict(load_file(path))
    for name, generator in generators.items():
        fd, _ = distances(features(generator), reference)
        measured = f"Fréchet distance {fd.value:.3f} [{fd.low:.3f}, {fd.high:.3f}], n = {SAMPLES}"
        rows.append({"weights": name, "measured": measured})
    images, labels = fashion_mnist("t10k")
    judges = {"classifier, shipped": classifier()}
    for path in sorted(WORK.glob("classifier-seed*/classifier.safetensors")):
        judges[f"classifier, {path.parent.name.removeprefix('classifier-')}"] = judge = FashionClassifier().eval()
        judge.load_state_dict(load_file(path))
    for name, judge in judges.items():
        rows.append({"weights": name, "measured": f"test accuracy {accuracy(judge, images, labels):.4f}"})
    return rows
