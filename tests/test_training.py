"""The training scripts on eighty images: they run, and a killed training continues exactly."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from training import classifier, cyclegan, data, diffusion, sagan, stylegan2

SAGAN = {
    "seed": 0,
    "batch": 4,
    "generator_lr": 1e-4,
    "discriminator_lr": 4e-4,
    "betas": [0.0, 0.9],
    "ema": 0.9,
    "checkpoint_every": 2,
}
STYLEGAN2 = {
    "seed": 0,
    "batch": 4,
    "generator_lr": 2e-3,
    "discriminator_lr": 2e-3,
    "betas": [0.0, 0.99],
    "penalty": {0: 0.05, 3600: 0.01},
    "penalty_every": 3,
    "cut_images_from": 3,
    "cut_features": {0: 9.0, 3: 0.5},
    "ema": 0.9,
    "checkpoint_every": 2,
}
CYCLEGAN = {
    "seed": 0,
    "batch": 4,
    "learning_rate": 2e-4,
    "betas": [0.5, 0.999],
    "cycle": 10.0,
    "identity": 5.0,
    "ema": 0.9,
    "bfloat16": True,
    "checkpoint_every": 2,
}
DIFFUSION = {
    "seed": 0,
    "batch": 4,
    "learning_rate": 1e-3,
    "warm_up": 2,
    "ema": 0.9,
    "checkpoint_every": 2,
    "unet": {
        "sample_size": 32,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [4, 4],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "attention_head_dim": 4,
        "norm_num_groups": 2,
    },
    "schedule": {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "clip_sample": True,
    },
}
CLASSIFIER = {"seed": 0, "batch": 16, "learning_rate": 1e-3, "weight_decay": 1e-4}


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """A folder of the real file format, filled with noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        for kind, header, shape, top in (("images-idx3", 16, (500, 28, 28), 256), ("labels-idx1", 8, (500,), 10)):
            with gzip.open(tmp_path / f"{split}-{kind}-ubyte.gz", "wb") as stream:
                stream.write(bytes(header) + rng.integers(0, top, shape, np.uint8).tobytes())
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    monkeypatch.setattr(sagan, "settle", lambda ema, seed: ema.eval())
    monkeypatch.setattr(cyclegan, "BUFFER", 6)
    with torch.random.fork_rng():
        yield


def run(train, config, work, **steps):
    train({**config, "work": str(work), **steps})
    files = sorted(work.rglob("*.safetensors"))
    assert files
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("train", "config", "unit"),
    [
        (sagan.train, SAGAN, "steps"),
        (stylegan2.train, STYLEGAN2, "steps"),
        (cyclegan.train, CYCLEGAN, "steps"),
        (diffusion.train, DIFFUSION, "steps"),
        (classifier.train, CLASSIFIER, "epochs"),
    ],
)
def test_a_killed_training_continues_exactly(train, config, unit, tmp_path, monkeypatch):
    whole = run(train, config, tmp_path / "whole", **{unit: 4 if unit == "steps" else 2})

    class Killed(Exception):
        pass

    saved = []
    save = sagan.checkpoint.save

    def save_once(path, state):
        save(path, state)
        saved.append(path)
        raise Killed

    monkeypatch.setattr(sagan.checkpoint, "save", save_once)
    with pytest.raises(Killed):
        run(train, config, tmp_path / "cut", **{unit: 4 if unit == "steps" else 2})
    monkeypatch.setattr(sagan.checkpoint, "save", save)
    torch.manual_seed(77)
    resumed = run(train, config, tmp_path / "cut", **{unit: 4 if unit == "steps" else 2})
    assert whole.keys() == resumed.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], resumed[name], rtol=1e-5, atol=1e-6, msg=name)


def test_images_are_padded_and_scaled():
    images, labels = data.fashion_mnist("train")
    assert images.shape == (500, 1, 32, 32)
    assert images[:, :, :2].eq(-1).all()
    assert -1 <= images.min() < images.max() <= 1
    assert labels.max() == 9


def test_missing_data_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="is missing: install dataset-fashion-mnist or set FASHION_MNIST"):
        data.fashion_mnist("train")


def test_the_buffer_of_fakes_keeps_its_size_and_shows_old_ones():
    torch.manual_seed(0)
    fakes = torch.arange(40.0).reshape(10, 4, 1, 1, 1)
    kept, seen = torch.empty(0, 1, 1, 1), []
    for fresh in fakes:
        before = kept
        kept, shown = cyclegan.recall(kept, fresh)
        seen.append(shown.flatten())
        old, new = set(before.flatten().tolist()), set(fresh.flatten().tolist())
        assert set(shown.flatten().tolist()) <= old | new
        assert len(kept) == min(6, len(before) + 4)
    assert torch.equal(seen[0], fakes[0].flatten())  # nothing to swap with yet
    stale = (torch.stack(seen) != fakes.reshape(10, 4))[2:].double().mean().item()
    assert 0.25 < stale < 0.75


def test_the_timesteps_of_a_batch_are_spread_over_all():
    for seed in range(5):
        torch.manual_seed(seed)
        t = diffusion.spread(10, 1000)
        assert sorted((t // 100).tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sagan", SAGAN),
        ("stylegan2", STYLEGAN2),
        ("cyclegan", CYCLEGAN),
        ("diffusion", DIFFUSION),
        ("classifier", CLASSIFIER),
    ],
)
def test_the_shipped_training_configs_are_complete(name, wanted):
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "training" / f"{name}.yaml").read_text())
    assert {*wanted, "epochs" if name == "classifier" else "steps", "work"} == set(config)
    options = [key for key, value in wanted.items() if isinstance(value, dict) and 0 not in value]  # no schedules
    assert all(set(wanted[key]) == set(config[key]) for key in options)
