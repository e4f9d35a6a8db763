import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from mpsearch import ArtifactError, CalibrationError, QualityReport, validate
from mpsearch.features import frechet_distance, moments, pooled_pixels
from mpsearch.quality import Reference, distances, paired_quality, ssim


def normal(n, d, seed, mean=0.0, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + mean


def test_frechet_distance_has_its_closed_form():
    a, b = moments(normal(5000, 3, 0)), moments(normal(5000, 3, 1))
    identical = frechet_distance(a, a)
    assert identical == pytest.approx(0, abs=1e-9)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.3, 0.0, -1.0]).double()
    base = normal(5000, 3, 0).double()
    centred = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T)).T)  # exactly N(0, I)
    distance = frechet_distance(moments(centred), moments(centred * scale + shift))
    assert distance == pytest.approx((shift.square().sum() + (1 - scale).square().sum()).item(), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_moments_do_not_depend_on_how_batches_are_cut(sizes, offset):
    features = normal(sum(sizes), 4, 0) + offset
    whole = moments(features)
    parts = moments(torch.split(features, sizes))
    torch.testing.assert_close(whole.covariance, parts.covariance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.mean, features.double().mean(0), rtol=1e-12, atol=1e-9)
    if sum(sizes) > 1:
        torch.testing.assert_close(whole.covariance, torch.cov(features.double().T), rtol=1e-6, atol=1e-8)


def test_ssim_is_that_of_scikit_image():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, 24, 31, generator=generator)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    ours = ssim(a, b, 1.0)
    for index in range(3):
        _, full = structural_similarity(
            a[index].numpy(), b[index].numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        inner = full[:, 5:-5, 5:-5]  # our window stays inside the picture
        assert ours[index].item() == pytest.approx(inner.mean(), rel=1e-5)


def test_kernel_distance_is_unbiased_and_finds_a_shift():
    reference = Reference(normal(400, 8, 0), "normal")
    same = [distances(normal(400, 8, seed), reference, draws=2)[1].value for seed in range(1, 41)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same)) + 1e-12
    kid = distances(normal(400, 8, 9, mean=1.0), reference)[1]
    assert kid.low > 0
    x, y = normal(400, 8, 9, mean=1.0).double(), reference.features.double()

    def kernel(p, q):
        return (p @ q.T / 8 + 1) ** 3

    n = 400
    direct = (kernel(x, x).sum() - kernel(x, x).trace()) / (n * (n - 1)) - 2 * kernel(x, y).mean()
    direct += (kernel(y, y).sum() - kernel(y, y).trace()) / (n * (n - 1))
    assert kid.value == pytest.approx(direct.item(), rel=1e-9)


def test_intervals_cover_the_truth_at_their_n():
    target = Reference(normal(20000, 4, 0), "normal")
    values = [distances(normal(300, 4, seed, scale=1.3), target, draws=60)[0] for seed in range(1, 41)]
    expected = np.mean([v.value for v in values])
    covered = np.mean([v.low <= expected <= v.high for v in values])
    assert covered >= 0.8


def test_paired_measures_by_hand():
    before = [torch.zeros(3, 1, 12, 12), torch.ones(2, 1, 12, 12)]
    after = [images + 0.1 for images in before]
    mse, psnr, similarity = paired_quality(before, after)
    assert mse.value == pytest.approx(0.01, rel=1e-5)
    assert mse.n == 5
    assert psnr.value == pytest.approx(20.0, abs=1e-4)
    assert psnr.low <= psnr.value <= psnr.high
    assert 0 < similarity.value < 1
    same = paired_quality(before, before)
    assert same[0].value == 0
    assert same[1] is None, "equal outputs have no finite PSNR"
    assert same[2].value == pytest.approx(1.0)
    tiny = paired_quality([torch.rand(4, 3, 8, 8)], [torch.rand(4, 3, 8, 8)])
    assert tiny[2] is None, "smaller than the window"


def test_validate_reports_every_figure(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    report = validate(model, {"main.0.weight": "w2", "main.3.weight": "w4a8"}, batches)
    shot.check()
    assert report.mse.value > 0
    assert math.isfinite(report.psnr_db.value)
    assert report.ssim is None
    assert report.fd_float.value == pytest.approx(0, abs=1e-6), "the reference is the float generator itself"
    assert report.fd_quantized.value > 0.001
    assert report.reference == "float generator"
    assert report.features == "pooled_pixels"
    assert QualityReport.from_json(report.to_json()) == report
    nothing = validate(model, {}, batches)
    assert nothing.mse.value == 0
    assert nothing.fd_quantized == nothing.fd_float


def test_a_reference_of_other_features_is_refused(deconv, tmp_path):
    model, batches = deconv
    with pytest.raises(CalibrationError, match="the reference has 7 features, the network gives 192"):
        validate(model, {}, batches, reference=Reference(torch.zeros(10, 7), "other"))
    path = tmp_path / "features.safetensors"
    save_file({"features": normal(10, 3, 0)}, path, {"name": "ten"})
    assert Reference.load(path).name == "ten"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="is no file of reference features"):
        Reference.load(path)


def test_pooled_pixels_take_any_shape():
    assert pooled_pixels(torch.rand(2, 3, 40, 20)).shape == (2, 192)
    assert pooled_pixels(torch.rand(2, 3, 4, 4)).shape == (2, 48)
    assert pooled_pixels(torch.rand(2, 5)).shape == (2, 5)
