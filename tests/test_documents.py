"""What the documents say is run: the notebook, the README's Python, the method of adding-a-method."""

import json
import re
from pathlib import Path

import pytest
import torch

import mpsearch
from mpsearch.cost import COSTS
from mpsearch.export import EXPORTERS
from mpsearch.inputs import REFINERS, SOURCES
from mpsearch.recovery import RECOVERERS
from mpsearch.search import SOLVERS
from mpsearch.sensitivity import ESTIMATORS
from mpsearch.zoo import sagan
from mpsearch.zoo.sagan import SAGANGenerator

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs():
    cells = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())["cells"]
    space: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert space["images"].shape == (64, 1, 32, 32)
    assert space["solution"].costs["bits"] <= 4


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    allocation, recovery = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    latents, *more = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).split(16)
    space = {"generator": sagan(), "latents": latents, "more": torch.cat(more), "Generator": SAGANGenerator}
    exec(allocation.replace('budgets=["bits<=4"]', 'budgets=["bits<=4"], effort="fast"'), space)
    torch.testing.assert_close(space["small"](latents), space["images"])
    before = space["images"]
    exec(recovery.replace("more.split(16)]", "more.split(16)], steps=8"), space)
    float_images = space["generator"](latents)
    assert (space["images"] - float_images).square().mean() < (before - float_images).square().mean()


def test_the_estimator_of_the_guide_works():
    text = (ROOT / "docs" / "adding-a-method.md").read_text()
    code = re.findall(r"```python\n(# mpsearch/sensitivity/weight_error.py.*?)```", text, flags=re.S)[0]
    imports = """
from collections.abc import Sequence
from dataclasses import dataclass
import numpy as np
from mpsearch.registry import describe
from mpsearch.subject import Subject
from mpsearch.types import Format, Table
"""
    space: dict = {}
    exec(imports + code, space)
    batches = [(torch.zeros(2, 64),)]
    table = mpsearch.estimate(sagan(), batches, ["w2", "w8"], space["WeightError"]())
    assert (table.values[:, 0] > table.values[:, 1]).all()
    for name in ("ESTIMATORS", "COSTS", "SOLVERS", "EXPORTERS", "SOURCES", "REFINERS", "RECOVERERS"):
        assert name in text


@pytest.mark.parametrize("registry", [ESTIMATORS, COSTS, SOLVERS, EXPORTERS, SOURCES, REFINERS, RECOVERERS])
def test_every_method_says_what_it_does(registry):
    for name, method in registry.items():
        kind = method if isinstance(method, type) else type(method)
        assert (kind.__doc__ or "").strip(), name
        assert not kind.__doc__.startswith(f"{kind.__name__}("), f"{name} has only the generated docstring"


def test_the_repository_names_no_machine():
    private = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt)/|file:///|https?://\S*(?:pypi|artifactory)")
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".ipynb") and ".venv" not in path.parts:
            found = private.search(path.read_text())
            assert found is None or path.name == "test_documents.py" or "runs" in path.parts, (path, found)
