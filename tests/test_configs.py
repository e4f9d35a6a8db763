"""The configurations that ship with the repository, each run for real on a few samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsearch import CalibrationError, load_packed, quantized, read_map
from mpsearch.calibration import Calibration, outputs
from mpsearch.config import QualityConfig, SamplesConfig, load_config
from mpsearch.run import Run
from mpsearch.workload import DISTANCES, HELDBACK
from mpsearch.zoo import WEIGHTS, is_published

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# The 255-layer U-Net is searched on a tenth of its layers here, the sampler on few steps; whole runs take minutes.
SHORT = {
    "zoo-terrain-unet": {
        "layers": {"include": ["*input_blocks.1.*", "*middle_block*", "time_embed.*"]},
        "estimator": {"name": "one-pass", "options": {"probes": 4}},
    },
    "diffusion": {"model": {"factory": "mpsearch.zoo:diffusion", "options": {"steps": 4}}},
}


def test_the_promised_configs_are_there():
    assert {
        "sagan",
        "stylegan2",
        "cyclegan",
        "zoo-dcgan-faces",
        "zoo-srvgg-x4",
        "zoo-upconv7-x2",
        "zoo-terrain-unet",
    } <= set(NAMES)


def test_the_default_is_the_embedded_generator_spelled_out():
    written, default = load_config(CONFIGS / "sagan.yaml"), load_config()
    assert written.judge == default.judge
    assert written.model_dump(exclude={"base", "quality"}) == default.model_dump(exclude={"base", "quality"})


@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs_to_a_report(name, tmp_path, published):
    config = load_config(CONFIGS / f"{name}.yaml", effort="fast", **SHORT.get(name, {}))
    if is_published(config.model.factory):
        published(config.model.factory.partition(":")[2])
    samples = SamplesConfig(calibration=4, heldback=4, distances=8, batch=2)
    run = Run(config.model_copy(update={"samples": samples}), tmp_path / name)
    solution = run.solution
    for text, limit in solution.limits.items():
        assert solution.costs[text.split("<=")[0]] <= limit * (1 + 1e-9)
    assert solution.error.value <= solution.baselines["uniform"].error.value
    assert run.quality.mse.value > 0
    files = run.export()
    assert run.report().read_text().count("|") > 100
    assert len(json.loads((tmp_path / name / "bitmap.json").read_text())["layers"]) == len(run.layers)

    batches = run.inputs(4, 5_000_000)
    calibration = Calibration.of(batches)
    with quantized(run.model, read_map(files["yaml"])):
        expected = outputs(run.model, calibration)
    found = outputs(load_packed(files["packed"], run.model), calibration)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_shipped_pictures_are_divided_among_the_sets_of_a_run(tmp_path):
    config = load_config(CONFIGS / "cyclegan.yaml")
    samples, run = config.samples, Run(config, tmp_path)

    def pictures(count, offset):
        return {picture.numpy().tobytes() for (batch,) in run.inputs(count, offset) for picture in batch}

    calibration = pictures(samples.calibration, 0)
    heldback, distances = pictures(samples.heldback, HELDBACK), pictures(samples.distances, DISTANCES)
    assert len(calibration) == samples.calibration
    assert len(distances) == samples.distances
    assert not calibration & (heldback | distances)
    many = config.samples.model_copy(update={"distances": 1000})
    with pytest.raises(
        CalibrationError, match=r"holds 1,000 samples, the run needs 1,064: .*; lower samples.distances"
    ):
        _ = Run(config.model_copy(update={"samples": many}), tmp_path / "many").layers
    own = QualityConfig(features="fashion")
    with pytest.raises(CalibrationError, match="holds 1,000 samples, the run needs 1,864"):
        _ = Run(config.model_copy(update={"quality": own}), tmp_path / "own").layers


def test_another_file_of_pictures_is_another_run(tmp_path):
    config = load_config(CONFIGS / "cyclegan.yaml")
    with np.load(WEIGHTS / "fashion_mnist_shoes.npz") as file:
        sneakers = file["sneaker"]
    np.savez(tmp_path / "fashion_mnist_shoes.npz", sneaker=sneakers)
    beside = config.model_copy(update={"base": tmp_path})
    same = Run(beside, tmp_path / "run").workload.identity
    assert same == Run(config, tmp_path / "run").workload.identity
    np.savez(tmp_path / "fashion_mnist_shoes.npz", sneaker=sneakers[::-1])
    assert same != Run(beside, tmp_path / "run").workload.identity
