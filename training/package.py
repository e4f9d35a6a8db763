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

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.features import frechet_distance, moments
from mpsearch.layers import find_layers
from mpsearch.quality import Reference, distances
from mpsearch.report import save_grid
from mpsearch.zoo.classifier import FashionClassifier
from mpsearch.zoo.embedded import (
    DIFFUSION,
    DIRECTIONS,
    WEIGHTS,
    classifier,
    cyclegan,
    diffusion,
    diffusion_step,
    sagan,
    stylegan2,
)
from mpsearch.zoo.sagan import LATENT
from mpsearch.zoo.stylegan2 import LIMIT
from training import cyclegan as cycle
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
def generate(model: nn.Module, shape: tuple[int, ...] = (LATENT,), seed: int = 1) -> Tensor:
    """What a generator draws from latents ``(SAMPLES, *shape)``."""
    latents = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(seed))
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
    train, _ = features_of(model, fashion_mnist("train")[0][:SAMPLES])
    halves = {"features": features, "train": train.half()}
    save_file(halves, WEIGHTS / "fashion_mnist_test_features.safetensors", {"name": name})
    facts = facts_of(WEIGHTS / "classifier.safetensors")
    save_grid(WEIGHTS / "classifier.png", {"real test images that the classifier was measured on": images[:16]})
    floor = frechet_distance(moments(train), moments(features))
    card = f"""# Fashion-MNIST classifier

- Use: its 64 pooled features define the Fréchet distance of the embedded generator.
- Data: {DATA}; horizontal mirror images and shifts of up to two pixels.
- Licence of the weights: Apache-2.0, as the project.
- Test accuracy on the 10,000 test images: {accuracy(model, images, labels):.4f}
- Fréchet distance of 10,000 real training images to the 10,000 test images, the floor of any generator: {floor:.3f}
- Weights: {sum(p.numel() for p in model.parameters()):,}
- Training: `python -m training.classifier configs/training/classifier.yaml`, seed {config["seed"]}, {facts["epoch"]} epochs of
  batch {config["batch"]}, {facts["seconds"]} s on two shared CPU cores.
- `fashion_mnist_test_features.safetensors`: the features of all 10,000 test images, which generated ones are compared with,
  and of the first 10,000 training images (half precision), for the gap between the two.

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
  convolution has one static weight. Features are cut at {LIMIT:g}, step by step in training, so that 8 bits hold them.
- Data: {DATA}.
- Licence of the weights: Apache-2.0, as the project.
{figures(images)}
- Training: `python -m training.stylegan2 configs/training/stylegan2.yaml`, seed {config["seed"]}, {facts["step"]} steps of
  batch {config["batch"]}, {facts["seconds"]} s on one thread of a shared CPU; non-saturating loss, lazy R1, exponential
  moving average. The schedule was chosen while it ran, between resumptions: images are cut to [-1, 1] from step
  {config["cut_images_from"]:,} on, features at {config["cut_features"]} and weight of R1 {config["penalty"]} by first step.

![samples](stylegan2.png)
"""
    (WEIGHTS / "stylegan2.md").write_text(card)


def package_diffusion(config: dict[str, Any]) -> None:
    shutil.copytree(Path(config["work"]) / "pipeline", DIFFUSION, dirs_exist_ok=True)
    model = diffusion()
    images = generate(model, (1, 32, 32))
    facts = facts_of(DIFFUSION / "unet" / "diffusion_pytorch_model.safetensors")
    save_grid(WEIGHTS / "diffusion.png", {"samples of the generator, not selected": images[:16]})
    layers = find_layers(diffusion_step(), (images[:1], torch.zeros(1, dtype=torch.int64)))
    card = f"""# Diffusion U-Net, 32x32 grey

- Use: `mpsearch.zoo.diffusion()` is the whole sampler, noise (N, 1, 32, 32) from N(0, 1) to images of that shape in
  [-1, 1]; `mpsearch.zoo.diffusion_step()` is one call of the U-Net. The folder `diffusion` is a diffusers pipeline.
- Architecture: diffusers' UNet2DModel with timestep embedding, attention at 8x8 and concatenated skips;
  {len(layers)} quantizable layers, {sum(p.numel() for p in model.parameters()):,} weights, {sum(layer.macs for layer in layers) / 1e6:.1f} million MACs a call. Velocity prediction on a
  cosine schedule of 1000 steps (Salimans, Ho, ICLR 2022), sampled by {len(model.timesteps)} steps of DDIM with eta 0 (Song, Meng, Ermon,
  ICLR 2021).
- Data: {DATA}.
- Licence of the weights: Apache-2.0, as the project.
{figures(images)}
- Training: `python -m training.diffusion configs/training/diffusion.yaml`, seed {config["seed"]}, {facts["step"]} steps of
  batch {config["batch"]}, {facts["seconds"]} s on one thread of a shared CPU; exponential moving average.

![samples](diffusion.png)
"""
    (WEIGHTS / "diffusion.md").write_text(card)


def package_cyclegan(config: dict[str, Any]) -> None:
    work, judge = Path(config["work"]), classifier()
    test = {name: cycle.domain("t10k", name) for name in cycle.DOMAINS}
    pixels = {name: images.add(1).mul(127.5).round().byte().numpy() for name, images in test.items()}
    np.savez_compressed(WEIGHTS / "fashion_mnist_shoes.npz", **pixels)
    features, floors = {}, {}
    for name, images in test.items():
        features[name], _ = features_of(judge, images)
        label = CLASSES[cycle.DOMAINS[name]]
        path = WEIGHTS / f"fashion_mnist_{name}_features.safetensors"
        train, _ = features_of(judge, cycle.domain("train", name)[:1000])
        halves = {"features": features[name], "train": train.half()}
        save_file(halves, path, {"name": f"1,000 real Fashion-MNIST test images, {label}"})
        floors[name] = frechet_distance(moments(train), moments(features[name]))
    for direction in DIRECTIONS:
        shutil.copy(work / f"{direction}.safetensors", WEIGHTS / f"cyclegan_{direction}.safetensors")
    models = torch.nn.ModuleDict({direction: cyclegan(direction) for direction in DIRECTIONS})
    facts = facts_of(WEIGHTS / f"cyclegan_{DIRECTIONS[0]}.safetensors")
    rows = []
    for index, direction in enumerate(DIRECTIONS):
        source, target = direction.split("2")
        wanted, back = cycle.DOMAINS[target], models[DIRECTIONS[1 - index]]
        raw = cycle.start("generator", config["seed"] + index)
        with torch.no_grad():
            images, untrained = models[direction](test[source]), raw(test[source])
            cycled = (back(images) - test[source]).abs().mean().item()
        found, classes = features_of(judge, images)
        _, before = features_of(judge, untrained)
        _, own = features_of(judge, test[source])
        shares = [(said == wanted).double().mean().item() for said in (own, before, classes)]
        reference = Reference(features[target], target)
        fd, kid = distances(found, reference)
        apart, _ = distances(features[source], reference)
        rows.append(
            f"| {source} → {target} | {shares[0]:.1%} | {shares[1]:.1%} | **{shares[2]:.1%}** | {cycled:.4f} | "
            f"{apart.value:.2f} | **{fd.value:.2f}** [{fd.low:.2f}, {fd.high:.2f}] | {floors[target]:.2f} | {kid.value * 1000:.2f} |"
        )
    cycle.pairs(models, WEIGHTS / "cyclegan.png")
    table = "\n".join(rows)
    card = f"""# CycleGAN, sneakers ↔ ankle boots, 32x32 grey

- Use: `mpsearch.zoo.cyclegan("sneaker2boot")` and `cyclegan("boot2sneaker")`. Images (N, 1, 32, 32) in [-1, 1] to images of
  the same size.
- Architecture: the residual generator of Zhu et al., ICCV 2017, at a quarter of the width: c7s1-16, d32, d64, four residual
  blocks of 64, u32, u16, c7s1-1, tanh; instance norm, reflection padding; {sum(p.numel() for p in models.parameters()) // 2:,} weights each.
- Data: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), its 6,000 training sneakers and 6,000 training ankle boots, unpaired, MIT
  licence, padded from 28x28 to 32x32.
- `fashion_mnist_shoes.npz`: the 1,000 test sneakers and the 1,000 test boots as bytes, so that the translators have inputs
  where the data set is not at hand. `fashion_mnist_sneaker_features.safetensors`, `fashion_mnist_boot_features.safetensors`: their
  features, and those of 1,000 training images each in half precision.
- Licence of the weights: Apache-2.0, as the project. Of the pictures: The MIT License, Copyright (c) 2017 Zalando SE; the text is
  below.
- Training: `python -m training.cyclegan configs/training/cyclegan.yaml`, seed {config["seed"]}, {facts["step"]} steps of batch
  {config["batch"]}, {facts["seconds"]} s on a share of two CPU cores; exponential moving average.

Measured on the test images of the source domain, n = 1,000 each. Called the target class by the shipped classifier: the sources
themselves, what an untrained net makes of them, and their translations. Cycle error: mean absolute change after going there and
back, of a range of 2. Fréchet distance to the 1,000 real test images of the target domain, 64 features of the shipped classifier:
of the sources, of the translations with a 95 % interval, and of 1,000 real training images, the floor. Kernel distance of the
translations x1000.

| | sources | untrained | translations | cycle error | FD of sources | FD of translations | FD floor | KID |
|---|---|---|---|---|---|---|---|---|
{table}

![sources and their translations, not selected](cyclegan.png)

{MIT}"""
    (WEIGHTS / "cyclegan.md").write_text(card)


MIT = """The MIT License (MIT)

Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files
(the “Software”), to deal in the Software without restriction, including without limitation the rights to use, copy, modify,
merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished
to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE
FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


PACKAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "classifier": package_classifier,
    "sagan": package_sagan,
    "stylegan2": package_stylegan2,
    "cyclegan": package_cyclegan,
    "diffusion": package_diffusion,
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
    for path in sorted(path for path in WEIGHTS.rglob("*") if path.is_file()):
        print(f"{path.relative_to(WEIGHTS)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
