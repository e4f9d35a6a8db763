"""Generators and run folders that would lead to wrong answers if nobody looked."""

import json
import random
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from typer.testing import CliRunner

import mpsearch
from mpsearch.cli import app
from mpsearch.errors import ArtifactError, ModelError
from mpsearch.export import load_packed


class Drawing(nn.Module):
    """Adds what ``draw`` returns to what a layer gives."""

    def __init__(self, draw):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.draw = nn.Linear(8, 8), draw

    def forward(self, x):
        return self.layer(x) + self.draw(x)


def batches(count=2):
    draws = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 8, generator=draws),) for _ in range(count)]


def test_noise_of_the_global_generators_is_the_same_in_every_run_and_leaves_them_alone():
    model = Drawing(lambda x: torch.from_numpy(np.random.randn(len(x), 8)).float() + random.random()).eval()
    np.random.seed(7)
    random.seed(7)
    states = (np.random.get_state()[1].tolist(), random.getstate())
    solution = mpsearch.allocate(model, batches(), ["bits<=8"], ["w2", "w8"], effort="fast")
    assert solution.bitmap["layer.weight"].bits == 8
    assert solution.error.value < 1e-3, "the noise is no error"
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states


def test_a_generator_that_changes_from_call_to_call_is_refused():
    own, calls = torch.Generator().manual_seed(0), []
    for draw in (
        lambda x: torch.randn(len(x), 8, generator=own),
        lambda x: 0.1 * len(calls.append(1) or calls),
    ):
        with pytest.raises(ModelError, match="two runs of the generator on the same inputs differ by"):
            mpsearch.allocate(Drawing(draw).eval(), batches(), ["bits<=4"], ["w2", "w4"], effort="fast")


def test_weights_that_cannot_be_put_in_place_are_refused():
    pruned = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(pruned[0], "weight", 0.3)
    lazy = nn.Sequential(nn.LazyLinear(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have one script no more
        scripted = torch.jit.trace(nn.Linear(8, 8), batches()[0])
    for model, text in (
        (scripted, "is scripted, and its weights cannot be replaced"),
        (lazy, "has weights without a shape yet: call the generator once before"),
        (pruned, "is pruned by a hook: make that permanent first"),
    ):
        with pytest.raises(ModelError, match=text):
            mpsearch.allocate(model, batches(), ["bits<=4"], ["w2", "w4"], effort="fast")


def test_pictures_of_several_sizes_and_none_are_validated():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1).eval()
    sizes = [(torch.randn(4, 3, 16, 16),), (torch.randn(2, 3, 12, 9),)]
    assert mpsearch.validate(conv, {"weight": "w4"}, sizes).psnr_db.value > 10
    numbers = nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)).eval()
    labelled = [(*batch, torch.arange(8) % 2) for batch in batches()]
    model = Drawing(lambda x: 0.0).eval()
    model.forward = lambda x, _: numbers(model.layer(x))
    assert mpsearch.validate(model, {"layer.weight": "w4"}, labelled).mse.value > 0


@dataclass(slots=True)
class Out:
    image: Tensor


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}

    def forward(self, x):
        return Out(self.last(self.first(x)[:, None].expand(-1, 3, -1).transpose(0, 1)).transpose(0, 1))


def test_extra_state_slots_and_strided_inputs_load_to_the_very_same_outputs(tmp_path):
    model, inputs = Extra().eval(), batches()
    bitmap = {"first.weight": "w4", "last.weight": "w4"}
    files = mpsearch.export(model, bitmap, tmp_path, inputs)
    with mpsearch.quantized(model, bitmap), torch.no_grad():
        expected = model(*inputs[0]).image
    with torch.no_grad():
        assert torch.equal(load_packed(files["packed"], Extra())(*inputs[0]).image, expected)


@pytest.fixture
def finished(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Linear(8, 48), nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 3, 3)).eval()\n"
    )
    torch.manual_seed(0)
    config = {
        "model": {"factory": "own.py:build"},
        "inputs": [{"kind": "normal", "shape": [8]}],
        "samples": {"calibration": 8, "heldback": 8, "distances": 40, "batch": 8},
        "effort": "fast",
        "quality": {"features": "pixels"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_stage_that_was_changed_is_refused(finished):
    model = nn.Sequential(nn.Linear(8, 48), nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 3, 3))
    save_file(model.state_dict(), finished / "own.safetensors")
    text = (finished / "own.yaml").read_text().replace("own.py:build", "own.py:build\n  weights: own.safetensors")
    (finished / "own.yaml").write_text(text)
    command = ["run", str(finished / "own.yaml"), "--out", str(finished / "run")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert CliRunner().invoke(app, command).exit_code == 0
    for name, change in (
        ("bitmap", lambda p: [own.update(weight_bits=8, format="w8") for own in p["layers"].values()]),
        ("layers", lambda p: p["layers"][0].update(macs=-5)),
        ("sensitivity", lambda p: p["values"][0].reverse()),
    ):
        path = finished / "run" / f"{name}.json"
        kept = path.read_text()
        payload = json.loads(kept)
        change(payload)
        path.write_text(json.dumps(payload))
        refused = CliRunner().invoke(app, command)
        assert isinstance(refused.exception, ArtifactError), name
        assert "was changed after it was written; delete it to compute it again" in str(refused.exception)
        path.write_text(kept)
    journal = finished / "run" / "measurements.jsonl"
    lines = journal.read_text().splitlines()
    name, values, checksum = json.loads(lines[1])
    journal.write_text("\n".join([lines[0], json.dumps([name, values[:1], checksum]), *lines[2:]]) + "\n")
    refused = CliRunner().invoke(app, command)
    assert "is damaged in line 2; delete it to measure again" in str(refused.exception)


class Named(nn.Module):
    """Weights under names that torch's own layers do not use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.weight1 = (nn.Parameter(torch.randn(8, 8) / 3) for _ in range(2))
        self.to_rgb_kernel, self.weights = (nn.Parameter(torch.randn(8, 8) / 3) for _ in range(2))
        self.cell, self.normed = nn.GRUCell(8, 8), nn.utils.weight_norm(nn.Linear(8, 8))
        self.recurrent = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        x = self.cell(x @ self.kernel @ self.weight1 @ self.to_rgb_kernel @ self.weights)
        return self.recurrent(self.normed(x)[:, None])[0][:, 0]


def test_weights_are_found_under_other_names_too(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers parametrizations
        model = Named().eval()
    solution = mpsearch.allocate(model, batches(), ["bits<=4"], ["w2", "w4", "w6"], effort="fast")
    names = {"kernel", "weight1", "to_rgb_kernel", "weights", "cell.weight_ih", "cell.weight_hh", "normed.weight"}
    assert set(solution.bitmap) == names
    assert all(solution.bitmap[name].bits for name in names)
    files = mpsearch.export(model, solution.bitmap, tmp_path, batches())
    with mpsearch.quantized(model, solution.bitmap), torch.no_grad():
        expected = model(*batches()[0])
    with torch.no_grad():
        assert torch.equal(load_packed(files["packed"], model)(*batches()[0]), expected)
        assert not torch.equal(model(*batches()[0]), expected)
