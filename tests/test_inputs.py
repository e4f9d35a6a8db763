import numpy as np
import pytest
import torch
from PIL import Image

from mpsearch import CalibrationError
from mpsearch.inputs import SOURCES, Constant, Images, Integers, Normal, Trajectory, Uniform, draw


@pytest.fixture
def pictures(tmp_path):
    for index, size in enumerate([(64, 48), (80, 90), (10, 10)]):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


class Halving:
    """A sampler of three steps."""

    def trajectory(self, noise):
        return [(noise / 2**step, 900 - step) for step in range(3)]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_the_contract(name, pictures):
    """A new source in the registry is tested here: count, determinism, finite values."""
    made = {
        "normal": Normal((3, 2), 2.0), "uniform": Uniform((2,), -1.0, 1.0), "integers": Integers(4),
        "constant": Constant(80.0, (1,)), "images": Images(str(pictures), crop=32),
        "trajectory": Trajectory(Halving(), (1, 2, 2)),
    }[name]  # fmt: skip
    assert isinstance(made, SOURCES[name])
    drawn = (made(12, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    columns = zip(*((found,) if isinstance(found, torch.Tensor) else found for found in drawn), strict=True)
    for number, (first, second, other) in enumerate(columns):
        assert len(first) == 12
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()
        if name != "constant" and number == 0:
            assert not torch.equal(first, other)


def test_draws_by_hand():
    generator = torch.Generator().manual_seed(0)
    assert Normal((1000,), 3.0)(4, generator).std().item() == pytest.approx(3, rel=0.1)
    values = Uniform((1000,), -2.0, 5.0)(4, generator)
    assert -2 <= values.min() < -1.9
    assert 4.9 < values.max() <= 5
    assert Integers(5)(20, generator).bincount().tolist() == [4] * 5
    assert Constant(0.5)(3, generator).tolist() == [0.5] * 3


def test_samples_do_not_depend_on_the_batch_size():
    sources = [Normal((2,)), Integers(3)]
    small, large = draw(sources, 10, 3, seed=7), draw(sources, 10, 10, seed=7)
    assert [len(batch[0]) for batch in small] == [3, 3, 3, 1]
    for argument in range(2):
        assert torch.equal(torch.cat([batch[argument] for batch in small]), large[0][argument])


def test_crops_are_real_pixels_on_the_wanted_scale(pictures):
    crops = Images(str(pictures), crop=40, low=-1.0, high=1.0)(5, torch.Generator().manual_seed(0))
    assert crops.shape == (5, 3, 40, 40)
    assert -1 <= crops.min() < 0 < crops.max() <= 1
    assert Images(str(pictures), crop=20, shrink=2, mode="L")(2, torch.Generator()).shape == (2, 1, 20, 20)
    only = pictures / "only"
    only.mkdir()
    with Image.open(pictures / "0.png") as first:
        pixels = torch.from_numpy(np.array(first).astype(np.int64)).permute(2, 0, 1)
        first.save(only / "a.png")
    crop = (Images(str(only), crop=16)(1, torch.Generator().manual_seed(3))[0] * 255).round().long()
    windows = pixels.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
    assert (windows == crop).all((2, 3, 4)).any()


def test_a_source_may_serve_several_arguments():
    ((level, x, t, label),) = draw([Constant(0.5), Trajectory(Halving(), (2,)), Integers(3)], 6, 6, seed=1)
    assert level.tolist() == [0.5] * 6
    assert t.tolist() == [900, 899, 898] * 2
    assert x.shape == (6, 2)
    assert sorted(label.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "missing", "crop": 8}, "does not exist"),
        ({"folder": ".", "crop": 500}, "holds no RGB picture of 500x500 or more"),
        ({"folder": "data", "crop": 8, "package": "no_such_package"}, r"'no_such_package', .* is not installed"),
    ],
)
def test_pictures_that_are_not_there(pictures, options, message, monkeypatch):
    monkeypatch.chdir(pictures)
    with pytest.raises(CalibrationError, match=message):
        Images(**options)(1, torch.Generator())


def test_a_broken_picture_is_named(pictures):
    (pictures / "bad.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(CalibrationError, match=r"bad.png is no readable picture"):
        Images(str(pictures), crop=8)(1, torch.Generator())
