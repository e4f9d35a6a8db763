import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mpsearch import CalibrationError, UsageError
from mpsearch.inputs import (
    SOURCES,
    Constant,
    Images,
    Integers,
    Normal,
    Shares,
    Styles,
    Tensors,
    Trajectory,
    Uniform,
    draw,
)


@pytest.fixture
def pictures(tmp_path):
    for index, size in enumerate([(64, 48), (80, 90), (10, 10)]):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def stored(tmp_path):
    """Forty samples: bytes, floats and labels that know their row."""
    rows = torch.arange(40)
    tensors = {"bytes": (rows * 6).byte()[:, None], "values": rows.double()[:, None], "labels": rows}
    save_file(tensors, tmp_path / "all.safetensors")
    np.savez_compressed(tmp_path / "all.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    np.savez(tmp_path / "one.npz", only=rows.numpy())
    return tmp_path


class Halving:
    """A sampler of three steps."""

    def trajectory(self, noise):
        return [(noise / 2**step, 900 - step) for step in range(3)]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_the_contract(name, pictures, stored):
    """A new source in the registry is tested here: count, determinism, finite values."""
    made = {
        "normal": Normal((3, 2), 2.0), "uniform": Uniform((2,), -1.0, 1.0), "integers": Integers(4),
        "constant": Constant(80.0, (1,)), "images": Images(str(pictures), crop=32),
        "tensors": Tensors(str(stored / "all.npz"), "values"),
        "trajectory": Trajectory(Halving(), (1, 2, 2)), "styles": Styles(torch.nn.Tanh(), (5,), truncation=0.7),
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


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_stored_samples_come_once_each_on_the_wanted_scale(stored, suffix):
    path = str(stored / f"all.{suffix}")
    pixels = Tensors(path, "bytes", low=-1.0, high=1.0)(40, torch.Generator().manual_seed(0))
    assert pixels.dtype is torch.float32
    expected = torch.arange(40).double() * 6 / 255 * 2 - 1
    torch.testing.assert_close(pixels[:, 0].sort().values.double(), expected, rtol=0, atol=1e-6)
    values = Tensors(path, "values", low=-1.0, high=1.0)(40, torch.Generator().manual_seed(0))
    assert values.dtype is torch.float32
    assert values[:, 0].sort().values.tolist() == list(range(40))
    assert Tensors(path, "labels")(3, torch.Generator()).dtype is torch.int64


def test_the_only_tensor_needs_no_key(stored):
    assert len(Tensors(str(stored / "one.npz"))(40, torch.Generator()).unique()) == 40


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"file": "none.npz"}, CalibrationError, "file of inputs none.npz does not exist"),
        ({"file": "none.safetensors"}, CalibrationError, "file of inputs none.safetensors does not exist"),
        ({"file": "all.npz"}, UsageError, "all.npz needs a key; it holds bytes, values, labels"),
        ({"file": "all.safetensors", "key": "byte"}, UsageError, "has no 'byte'; it holds bytes, labels, values"),
        ({"file": "all.pt"}, UsageError, r"reads .safetensors and .npz files, not all.pt"),
        ({"file": "bad.npz"}, CalibrationError, "bad.npz is no readable file of tensors"),
        ({"file": "bad.safetensors"}, CalibrationError, "bad.safetensors is no readable file of tensors"),
        ({"file": "words.npz"}, CalibrationError, "words.npz is no readable file of tensors"),
        ({"file": "scalar.npz"}, CalibrationError, r"scalar.npz is \(\): expected a row for every sample"),
        ({"file": "one.npz"}, CalibrationError, "one.npz holds 40 samples, 41 are wanted"),
    ],
)
def test_stored_samples_that_are_not_there(stored, options, error, message, monkeypatch):
    monkeypatch.chdir(stored)
    np.savez(stored / "scalar.npz", only=np.array(3.0))
    np.savez(stored / "words.npz", only=np.array(["a", "b"]))
    for suffix in ("npz", "safetensors"):
        (stored / f"bad.{suffix}").write_bytes((stored / f"all.{suffix}").read_bytes()[:50])
    with pytest.raises(error, match=message):
        Tensors(**options)(41, torch.Generator())


def taken(shares, stock, **counts):
    return {name: set(shares.of(stock, name, count)[:, 0].tolist()) for name, count in counts.items()}


@pytest.mark.parametrize("reference", [0, 9])
@pytest.mark.parametrize("heldback", [4, 9, 16, 22])
def test_the_sets_of_a_run_have_no_sample_in_common(stored, heldback, reference):
    stock, calibration, distances = Tensors(str(stored / "all.npz"), "values"), 8, 9
    shares = Shares(3, calibration, heldback, distances, reference)
    sets = taken(shares, stock, calibration=calibration, heldback=heldback, distances=distances, reference=reference)
    assert [len(found) for found in sets.values()] == [calibration, heldback, distances, reference]
    for other in ("heldback", "distances", "reference"):
        assert not sets["calibration"] & sets[other]
    assert not sets["distances"] & sets["reference"]
    if calibration + heldback + distances + reference <= 40:
        assert not sets["heldback"] & (sets["distances"] | sets["reference"])
    assert taken(shares, stock, calibration=calibration) != taken(
        Shares(4, calibration, heldback, distances), stock, calibration=calibration
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 33, 4, 0), "holds 40 samples, the run needs 41: 8 for calibration and 33 others; lower samples.heldback"),
        (
            (8, 4, 17, 17),
            "holds 40 samples, the run needs 42: 8 for calibration and 34 others; lower samples.distances",
        ),
        ((41, 2, 2, 0), "holds 40 samples, the run needs 43: 41 for .*; lower samples.calibration"),
    ],
)
def test_too_few_stored_samples_are_one_line(stored, sizes, message):
    stock = Tensors(str(stored / "all.npz"), "values")
    for purpose in ("calibration", "heldback", "distances"):
        with pytest.raises(CalibrationError, match=message):
            Shares(0, *sizes).of(stock, purpose, 2)


def test_arguments_stored_together_stay_together(stored):
    path, shares = str(stored / "all.safetensors"), Shares(0, 8, 8, 8)
    sources = [Tensors(path, "values"), Normal((2,)), Tensors(path, "labels")]
    batches = draw(sources, 8, 3, 7, lambda stock: shares.of(stock, "heldback", 8))
    assert [len(batch[0]) for batch in batches] == [3, 3, 2]
    for values, noise, labels in batches:
        assert values[:, 0].tolist() == labels.tolist()
        assert noise.std() > 0
