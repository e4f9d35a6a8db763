"""The standard Inception, which only users have: a package and weights in its place."""

import hashlib
import subprocess
import sys

import pytest
import torch

from mpsearch import ArtifactError, UsageError
from mpsearch.config import load_config
from mpsearch.features import extract
from mpsearch.run import Run
from mpsearch.zoo import InceptionFeatures, inception

# As the real one: the package wants torchvision, its module of the network does not.
PACKAGE = {
    "__init__": "import a_package_that_nobody_has",
    "helpers": "def check(condition):\n    assert condition",
    "feature_extractor_inceptionv3": """
import torch
from torch import nn
from torch_fidelity.helpers import check

class FeatureExtractorInceptionV3(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__()
        assert features_list == ["2048"]
        self.weight = torch.load(feature_extractor_weights_path)["weight"]

    def forward(self, x):
        check(x.dtype == torch.uint8 and x.shape[1] == 3)
        return (x.float().mean((2, 3)) @ self.weight,)
""",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package and its file of weights; the former cannot be imported whole."""
    folder = tmp_path / "site" / "torch_fidelity"
    folder.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    weights = tmp_path / "weights.pth"
    torch.save({"weight": torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))}, weights)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    inception._load.cache_clear()
    yield weights
    inception._load.cache_clear()


def test_the_network_is_loaded_without_the_package(installed):
    network = InceptionFeatures(str(installed), 0.0, 1.0)
    assert not [name for name in sys.modules if name.startswith("torch_fidelity")], "a later import gets all of it"
    images = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) * 1.2
    features = extract(network, images)
    assert features.shape == (2, 2048)
    levels = (images * 255).round().clamp(0, 255).expand(-1, 3, -1, -1)
    torch.testing.assert_close(features, levels.mean((2, 3)) @ torch.load(installed)["weight"], rtol=1e-5, atol=1e-3)


def test_by_name_in_a_config(installed, tmp_path):
    judge = {"features": "inception", "options": {"weights": installed.name, "low": 0}}
    run = Run(load_config(quality=judge, base=installed.parent), tmp_path / "out")
    assert run.workload.features == InceptionFeatures(str(installed), 0)


def test_what_is_missing_is_said_in_one_line(installed, tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match=r"nothing.pth \(No such file or directory\): download https://github.com/toshas"
    ):
        InceptionFeatures(str(tmp_path / "nothing.pth"))
    with pytest.raises(UsageError, match=r"inception needs low below high, not 1.0 and 0.0"):
        InceptionFeatures(str(installed), 1.0, 0.0)
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    with pytest.raises(
        ArtifactError, match=r"other.pth is not weights-inception-2015-12-05-6726825d.pth: its sha256 is"
    ):
        InceptionFeatures(str(other))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UsageError, match=r"cannot read .*hub/checkpoints/weights-inception"):
        InceptionFeatures()
    (tmp_path / "site/torch_fidelity/helpers.py").write_text("import another_package")
    with pytest.raises(UsageError, match="cannot use this torch-fidelity: No module named 'another_package'"):
        InceptionFeatures(str(installed))
    monkeypatch.setattr(inception, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(UsageError, match=r"need torch-fidelity: pip install 'mpsearch\[inception\]'"):
        InceptionFeatures(str(installed))


def test_starting_imports_neither_torchvision_nor_torch_fidelity():
    code = "import sys, mpsearch.cli; print([m for m in ('torchvision', 'torch_fidelity') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
