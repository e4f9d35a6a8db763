"""The configurations that ship with the repository, each run for real on a few samples."""

import json
from pathlib import Path

import pytest
import torch

from mpsearch import load_packed, quantized, read_map
from mpsearch.calibration import Calibration, outputs
from mpsearch.config import SamplesConfig, load_config
from mpsearch.run import Run

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# The 255-layer U-Net is searched on a tenth of its layers here; its whole run takes minutes.
SHORT = {
    "terrain-unet": {
        "layers": {"include": ["*input_blocks.1.*", "*middle_block*", "time_embed.*"]},
        "estimator": {"name": "one-pass", "options": {"probes": 4}},
    }
}


def test_the_promised_configs_are_there():
    assert {"sagan", "stylegan2", "dcgan-faces", "srvgg-x4", "upconv7-x2", "terrain-unet"} <= set(NAMES)


def test_the_default_is_the_embedded_generator_spelled_out():
    written, default = load_config(CONFIGS / "sagan.yaml"), load_config()
    assert written.judge == default.judge
    assert written.model_dump(exclude={"base", "quality"}) == default.model_dump(exclude={"base", "quality"})


@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs_to_a_report(name, tmp_path):
    config = load_config(CONFIGS / f"{name}.yaml", effort="fast", **SHORT.get(name, {}))
    needed = config.base / (config.model.weights or ".")
    if not needed.exists():
        pytest.skip(f"{needed.name} of {name} is not on this machine")
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
