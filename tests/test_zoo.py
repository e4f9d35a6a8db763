import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch import ArtifactError, ModelError, UsageError
from mpsearch.features import frechet_distance, moments
from mpsearch.inputs import Tensors
from mpsearch.layers import find_layers
from mpsearch.quality import Reference
from mpsearch.zoo import (
    WEIGHTS,
    classifier,
    cyclegan,
    fashion_features,
    load_generator,
    reference_path,
    sagan,
    stylegan2,
)
from mpsearch.zoo.cyclegan import CycleGANGenerator

DISTANCES = {sagan: 1.5, stylegan2: 2.0}  # at most, n = 2,000


@pytest.fixture(scope="module", params=DISTANCES, ids=lambda factory: factory.__name__)
def generator(request):
    return request.param


@pytest.fixture(scope="module")
def features(generator):
    latents = torch.randn(2000, 64, generator=torch.Generator().manual_seed(4))
    model = generator()
    with torch.no_grad():
        return torch.cat([fashion_features(model(batch)) for batch in latents.split(200)])


def test_an_embedded_generator_draws_all_ten_classes(features):
    classes = classifier().head(features).argmax(1)
    shares = torch.bincount(classes, minlength=10) / len(classes)
    assert (shares >= 0.03).all(), shares


def test_its_distance_to_real_images_is_that_of_a_trained_generator(generator, features):
    reference = Reference.load(reference_path())
    assert reference.features.shape == (10_000, 64)
    target = moments(reference.features)
    noise = torch.rand(2000, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    generated = frechet_distance(moments(features), target)
    assert generated < DISTANCES[generator]
    assert generated < frechet_distance(moments(fashion_features(noise)), target) / 20


@pytest.fixture(scope="module")
def shoes():
    """Every shipped picture of both domains, and its translation."""
    path, everything = str(WEIGHTS / "fashion_mnist_shoes.npz"), torch.arange(1000)
    real = {name: Tensors(path, name, -1.0, 1.0).rows(everything) for name in ("sneaker", "boot")}
    with torch.no_grad():
        return real, {name: cyclegan(f"{name}2{other}")(real[name]) for name, other in OTHER.items()}


OTHER, LABEL = {"sneaker": "boot", "boot": "sneaker"}, {"sneaker": 7, "boot": 9}


@pytest.mark.parametrize("name", OTHER)
def test_translations_are_taken_for_the_other_domain(name, shoes):
    real, made = shoes
    target = OTHER[name]
    sources, wanted = (
        Reference.load(WEIGHTS / f"fashion_mnist_{domain}_features.safetensors").features for domain in (name, target)
    )
    assert torch.allclose(fashion_features(real[target][:50]), wanted[:50], atol=1e-4)
    found, head = fashion_features(made[name]), classifier().head
    before, after = ((head(few).argmax(1) == LABEL[target]).double().mean() for few in (sources, found))
    assert before < 0.1
    assert after > 0.85
    apart = frechet_distance(moments(sources), moments(wanted))
    assert frechet_distance(moments(found), moments(wanted)) < apart / 20


@pytest.mark.parametrize("name", OTHER)
def test_a_translation_remembers_its_source(name, shoes):
    real, made = shoes
    with torch.no_grad():
        again = cyclegan(f"{OTHER[name]}2{name}")(made[name])
    error = (again - real[name]).abs().flatten(1).mean(1)
    others = (again - real[name].roll(1, 0)).abs().flatten(1).mean(1)
    assert error.mean() < 0.12
    assert (error < others).double().mean() > 0.95


def test_a_direction_that_does_not_exist():
    with pytest.raises(UsageError, match="no direction 'boot2boat'; there are sneaker2boot and boot2sneaker"):
        cyclegan("boot2boat")


def test_a_translator_is_what_the_paper_says():
    torch.manual_seed(0)
    model, images = CycleGANGenerator(), torch.rand(3, 1, 32, 32) * 2 - 1
    assert sum(p.numel() for p in model.parameters()) < 350_000
    layers = find_layers(model, (images,))
    assert len(layers) == 3 + 2 * 4 + 3
    assert [layer.name for layer in layers if layer.channel_axis == 1] == ["up.0.weight", "up.3.weight"]
    with torch.no_grad():
        whole = model(images)
        assert whole.shape == images.shape
        assert whole.abs().max() <= 1
        one = model(images[1:2])
        assert torch.allclose(one, whole[1:2], atol=1e-5)  # instance norm: samples do not see each other
        assert model(torch.zeros(2, 1, 40, 24)).shape == (2, 1, 40, 24)
        flat = model.stem[0](torch.full((1, 1, 32, 32), 0.7))
        assert flat.std((2, 3)).max() < 1e-5  # reflection padding: no border
        brighter = model.stem(images * 3 - 5)
        assert torch.allclose(brighter, model.stem(images), atol=1e-3)  # instance norm takes scale and offset away


def test_what_ships_is_small_and_documented():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) <= 25e6
    for name in ("sagan", "stylegan2", "cyclegan", "diffusion", "classifier"):
        card = (WEIGHTS / f"{name}.md").read_text()
        for word in ("Data:", "Licence", "seed", "epochs" if name == "classifier" else "steps", " s on", f"{name}.png"):
            assert word in card, (name, word)
    for name in ("sagan", "stylegan2", "diffusion"):
        assert "Fréchet distance" in (WEIGHTS / f"{name}.md").read_text()
    assert "Copyright © 2017 Zalando SE" in (WEIGHTS / "cyclegan.md").read_text()  # of the pictures that ship
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
