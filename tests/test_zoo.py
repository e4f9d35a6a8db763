import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch import ArtifactError, ModelError, UsageError
from mpsearch.features import frechet_distance, moments
from mpsearch.quality import Reference
from mpsearch.zoo import WEIGHTS, classifier, fashion_features, load_generator, reference_path, sagan, stylegan2


@pytest.fixture(scope="module", params=[sagan, stylegan2], ids=lambda factory: factory.__name__)
def features(request):
    latents = torch.randn(2000, 64, generator=torch.Generator().manual_seed(4))
    model = request.param()
    with torch.no_grad():
        return torch.cat([fashion_features(model(batch)) for batch in latents.split(200)])


def test_an_embedded_generator_draws_all_ten_classes(features):
    classes = classifier().head(features).argmax(1)
    shares = torch.bincount(classes, minlength=10) / len(classes)
    assert (shares >= 0.03).all(), shares


def test_its_distance_to_real_images_is_that_of_a_trained_generator(features):
    reference = Reference.load(reference_path())
    assert reference.features.shape == (10_000, 64)
    target = moments(reference.features)
    noise = torch.rand(2000, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    generated = frechet_distance(moments(features), target)
    assert generated < 1.5
    assert generated < frechet_distance(moments(fashion_features(noise)), target) / 20


def test_what_ships_is_small_and_documented():
    files = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sum(files.values()) <= 12e6
    for name in ("sagan", "stylegan2", "classifier"):
        card = (WEIGHTS / f"{name}.md").read_text()
        for word in ("Data:", "Licence", "seed", "epochs" if name == "classifier" else "steps", " s on", f"{name}.png"):
            assert word in card, (name, word)
        assert name == "classifier" or ("Fréchet distance" in card and "Classes among" in card)
    assert float((WEIGHTS / "classifier.md").read_text().split("10,000 test images: ")[1][:6]) >= 0.91


MODULE = """
from torch import nn

def build(width=4):
    return nn.Linear(width, 2)

def number():
    return 3
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "my_generator.py").write_text(MODULE)
    save_file(nn.Linear(4, 2).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path


@pytest.mark.parametrize("factory", ["my_generator:build", "my_generator.py:build"])
def test_a_factory_and_its_weights(project, factory):
    from pathlib import Path

    model = load_generator(factory, Path("weights.safetensors"), {}, project)
    expected = load_file(project / "weights.safetensors")
    assert torch.equal(model.weight, expected["weight"])
    assert not model.training
    assert load_generator(factory, None, {"width": 7}, project).in_features == 7


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("my_generator", UsageError, "is no factory: write module:function"),
        ("my_generator:bild", UsageError, r"has no function 'bild'; it has build, number"),
        ("no_such_module_here:build", UsageError, "cannot import 'no_such_module_here'"),
        ("missing.py:build", UsageError, r"cannot import 'missing.py': FileNotFoundError: no file"),
        ("my_generator:number", ModelError, "returns a int, not a torch.nn.Module"),
    ],
)
def test_factories_that_do_not_work(project, factory, error, message):
    with pytest.raises(error, match=message):
        load_generator(factory, None, {}, project)


def test_options_that_the_factory_does_not_take(project):
    with pytest.raises(UsageError, match=r"fails with the options \{'depth': 3\}: TypeError"):
        load_generator("my_generator.py:build", None, {"depth": 3}, project)


def test_weights_that_do_not_fit_are_listed(project):
    path = project / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, path)
    message = r"does not fit the model in 3 entries: bias is missing; extra is unknown to the model; weight is \(3, 4\)"
    with pytest.raises(ArtifactError, match=message):
        load_generator("my_generator.py:build", path, {}, project)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="is no safetensors file, or a truncated one"):
        load_generator("my_generator.py:build", path, {}, project)
    with pytest.raises(ArtifactError, match="do not exist"):
        load_generator("my_generator.py:build", project / "none.safetensors", {}, project)
