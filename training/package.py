"""Copy trained weights into the package, with reference features and one model card each.

``python -m training.package [name …]`` reads the work folders of the named configs, of all by default. Every figure in a
card is measured here.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.features import frechet_distance, moments
from mpsearch.quality import Reference, distances
from mpsearch.report import save_grid
from mpsearch.zoo.classifier import FashionClassifier
from mpsearch.zoo.embedded import WEIGHTS, classifier, sagan, stylegan2
from mpsearch.zoo.sagan import LATENT
from training.classifier import accuracy
from training.data import CLASSES, fashion_mnist

CONFIGS = Path("configs/training")
SAMPLES = 10_000
DATA = "Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 60,000 training images, MIT licence, padded from 28x28 to 32x32"


@torch.no_grad()
def features_of(model: FashionClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(features, predicted classes)."""
    parts = [model.features(batch) for batch in images.split(500)]
    features = torch.cat(parts)
    return features, model.head(features).argmax(1)


@torch.no_grad()
def generate(model: nn.Module, seed: int = 1) -> Tensor:
    """What a generator draws from latents ``(SAMPLES, 64)``."""
    latents = torch.randn(SAMPLES, LATENT, generator=torch.Generator().manual_seed(seed))
    return torch.cat([model(batch) for batch in latents.split(200)])


def figures(images: Tensor) -> str:
    """Lines of a card: distances to the real test images, and the share of every class."""
    features, classes = features_of(classifier(), images)
    fd, kid = distances(features, Reference.load(WEIGHTS / "fashion_mnist_test_features.safetensors"))
    shares = torch.bincount(classes, minlength=10).double() / len(classes)
    coverage = ", ".join(f"{name} {share:.1%}" for name, share in zip(CLASSES, shares.tolist(), strict=True))
    return f"""- Fréchet distance to the 10,000 real test images, 64 features of the shipped classifier, n = {len(images):,}:
  {fd.value:.3f} [{fd.low:.3f}, {fd.high:.3f}]; kernel distance x1000 {kid.value * 1000:.2f} (n = {kid.n}).
- Classes among {len(images):,} samples, by the shipped classifier: {coverage}."""


def facts_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def package_classifier(config: dict[str, Any]) -> None:
    shutil.copy(Path(config["work"]) / "classifier.safetensors", WEIGHTS / "classifier.safetensors")
    model, (images, labels) = classifier(), fashion_mnist("t10k")
    features, _ = features_of(model, images)
    name = "10,000 real Fashion-MNIST test images"
    save_file({"features": features}, WEIGHTS / "fashion_mnist_test_features.safetensors", {"name": name})
    facts = facts_of(WEIGHTS / "classifier.safetensors")
    save_grid(WEIGHTS / "classifier.png", {"real test images that the classifier was measured on": images[:16]})
    train_features, _ = features_of(model, fashion_mnist("train")[0])
    floor = frechet_distance(moments(train_features[:SAMPLES]), moments(features))
    card = f"""# Fashion-MNIST classifier

- Use: its 64 pooled features define the Fréchet distance of the embedded generator.
- Data: {DATA}; horizontal mirror images and shifts of up to two pixels.
- Licence of the weights: Apache-2.0, as the project.
- Test accuracy on the 10,000 test images: {accuracy(model, images, labels):.4f}
- Fréchet distance of 10,000 real training images to the 10,000 test images, the floor of any generator: {floor:.3f}
- Weights: {sum(p.numel() for p in model.parameters()):,}
- Training: `python -m training.classifier configs/training/classifier.yaml`, seed {config["seed"]}, {facts["epoch"]} epochs of
  batch {config["batch"]}, {facts["seconds"]} s on two shared CPU cores.
- `fashion_mnist_test_features.safetensors`: the features of all 10,000 test images, from which mean, covariance and kernel
  distances are computed.

![real test images](classifier.png)
"""
    (WEIGHTS / "classifier.md").write_text(card)


def package_sagan(config: dict[str, Any]) -> None:
    shutil.copy(Path(config["work"]) / "generator.safetensors", WEIGHTS / "sagan.safetensors")
    images = generate(sagan())
    facts = facts_of(WEIGHTS / "sagan.safetensors")
    save_grid(WEIGHTS / "sagan.png", {"samples of the embedded generator, not selected": images[:16]})
    card = f"""# Self-Attention GAN, 32x32 grey

- Use: the embedded default of mpsearch. Latents (N, 64) from N(0, 1) to images (N, 1, 32, 32) in [-1, 1].
- Architecture: residual generator with self-attention at 16x16, spectral norm, batch norm and nearest upsampling (Zhang et
  al., ICML 2019); 15 quantizable layers, {sum(p.numel() for p in sagan().parameters()):,} weights.
- Data: {DATA}.
- Licence of the weights: Apache-2.0, as the project.
{figures(images)}
- Training: `python -m training.sagan configs/training/sagan.yaml`, seed {config["seed"]}, {facts["step"]} steps of batch
  {config["batch"]}, {facts["seconds"]} s on two shared CPU cores; exponential moving average, batch statistics
  re-measured.

![samples](sagan.png)
"""
    (WEIGHTS / "sagan.md").write_text(card)


def package_stylegan2(config: dict[str, Any]) -> None:
    shutil.copy(Path(config["work"]) / "generator.safetensors", WEIGHTS / "stylegan2.safetensors")
    model = stylegan2()
    images = generate(model)
    facts = facts_of(WEIGHTS / "stylegan2.safetensors")
    save_grid(WEIGHTS / "stylegan2.png", {"samples of the generator, not selected": images[:16]})
    card = f"""# StyleGAN2-type generator, 32x32 grey

- Use: `mpsearch.zoo.stylegan2()`. Latents z (N, 64) from N(0, 1) to images (N, 1, 32, 32) in [-1, 1];
  `stylegan2(space="w")` starts behind the mapping network.
- Architecture: mapping network, modulated and demodulated convolutions, bilinear upsampling, noise inputs (fixed in
  evaluation mode), skips to grey (Karras et al., CVPR 2020); 26 quantizable layers,
  {sum(p.numel() for p in model.parameters()):,} weights. Styles scale input channels and demodulation output channels, so that every
  convolution has one static weight.
- Data: {DATA}.
- Licence of the weights: Apache-2.0, as the project.
{figures(images)}
- Training: `python -m training.stylegan2 configs/training/stylegan2.yaml`, seed {config["seed"]}, {facts["step"]} steps of
  batch {config["batch"]}, {facts["seconds"]} s on one thread of a shared CPU; non-saturating loss, lazy R1, exponential
  moving average.

![samples](stylegan2.png)
"""
    (WEIGHTS / "stylegan2.md").write_text(card)


PACKAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "classifier": package_classifier,
    "sagan": package_sagan,
    "stylegan2": package_stylegan2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(PACKAGES)}; all by default")
    names = parser.parse_args().names or list(PACKAGES)
    if odd := set(names) - set(PACKAGES):
        parser.error(f"unknown: {', '.join(sorted(odd))}; there are {', '.join(PACKAGES)}")
    WEIGHTS.mkdir(exist_ok=True)
    for name in names:
        PACKAGES[name](yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    for path in sorted(WEIGHTS.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
