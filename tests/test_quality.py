import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from mpsearch import ArtifactError, CalibrationError, QualityReport, validate
from mpsearch.features import frechet_distance, moments, pooled_pixels, principal_axes, split
from mpsearch.quality import MEASURES, Reference, distances, feature_distance, figures, paired_quality, ssim
from mpsearch.quality.gap import frechet_gap
from mpsearch.quality.neighbours import BLOCK, radii
from mpsearch.quality.precision_recall import PrecisionRecall
from mpsearch.types import Interval
from mpsearch.types.quality import gap_db


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


def apart(model, batches):
    with torch.no_grad():
        features = torch.cat([pooled_pixels(model.eval()(*batch)) for batch in batches]).double()
    distances = torch.cdist(features, features).square()
    return distances.sum().item() / (len(features) * (len(features) - 1))


def test_validate_reports_every_figure(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    report = validate(model, {"main.0.weight": "w2", "main.3.weight": "w4a8"}, batches)
    shot.check()
    assert report.mse.value > 0
    assert math.isfinite(report.psnr_db.value)
    assert report.ssim is None
    fd = report.figures["fd"]
    assert fd.float.value == pytest.approx(0, abs=1e-6), "the reference is the float generator itself"
    assert fd.quantized.value > 0.001
    assert report.own
    assert report.reference == "the float generator on the same inputs"
    assert report.feature_distance.value == pytest.approx(report.feature_share.value * apart(model, batches), rel=1e-6)
    assert report.floors["mse"].value > report.mse.value
    assert report.floors["psnr_db"].value < report.psnr_db.value
    assert report.features == "pooled_pixels"
    assert QualityReport.from_json(report.to_json()) == report
    nothing = validate(model, {}, batches)
    assert nothing.mse.value == 0
    assert nothing.feature_distance.value == 0
    assert all(figure.quantized == figure.float for figure in nothing.figures.values())


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
    for tensors, message in {
        "other": ({"train": normal(4, 3, 0)}, "no file of reference features: it has no tensor 'features'"),
        "wide": ({"features": normal(4, 3, 0), "train": normal(4, 2, 0)}, "3 features an image, but 2 in 'train'"),
        "one": (
            {"features": normal(4, 3, 0), "train": normal(1, 3, 0)},
            r"holds train of \(1, 3\): expected 2 or more",
        ),
    }.values():
        save_file(tensors, path)
        with pytest.raises(ArtifactError, match=message):
            Reference.load(path)


def test_pooled_pixels_take_any_shape():
    assert pooled_pixels(torch.rand(2, 3, 40, 20)).shape == (2, 192)
    assert pooled_pixels(torch.rand(2, 3, 4, 4)).shape == (2, 48)
    assert pooled_pixels(torch.rand(2, 5)).shape == (2, 5)


# the distribution of features


def measured(name, x, y, seed=0, draws=20):
    return MEASURES[name](x, y, draws, seed)


def test_fd_infinity_of_equal_distributions_is_nearer_to_nothing():
    target = normal(40_000, 16, 0)
    extrapolated, plain = [], []
    for seed in range(1, 9):
        x = normal(400, 16, seed)
        extrapolated.append(measured("fd-infinity", x, target, draws=5)["fd_infinity"].value)
        plain.append(measured("frechet", x, target, draws=2)["fd"].value)
    assert min(plain) > 0.05
    assert abs(np.mean(extrapolated)) < 0.15 * np.mean(plain)


def test_fd_infinity_is_the_distance_of_the_distributions():
    target = normal(40_000, 8, 0)
    truth = 8 * 0.5**2 + 8 * 0.2**2  # means 0.5 apart, standard deviations 0.2
    found = [measured("fd-infinity", normal(500, 8, s, 0.5, 1.2), target, draws=40)["fd_infinity"] for s in range(1, 9)]
    assert np.mean([f.value for f in found]) == pytest.approx(truth, rel=0.05)
    assert sum(f.low <= truth <= f.high for f in found) >= 6
    assert all(0.1 < f.high - f.low < 2 for f in found)
    assert measured("fd-infinity", normal(500, 251, 1), normal(500, 251, 2)) == {}, "no law with so few samples"


def test_figures_do_not_depend_on_the_order_of_calls():
    x, y = normal(60, 4, 1), normal(80, 4, 2)
    assert [measured(n, x, y) for n in MEASURES] == [measured(n, x, y) for n in reversed(MEASURES)][::-1]


def test_precision_and_recall_of_shifted_sets():
    same = measured("precision-recall", normal(900, 3, 0), normal(1200, 3, 1))
    assert same["precision"].value > 0.9
    assert same["recall"].value > 0.9
    far = measured("precision-recall", normal(900, 3, 0, 100.0), normal(1200, 3, 1))
    assert far["precision"].value == far["recall"].value == 0
    narrow = measured("precision-recall", normal(900, 3, 0, scale=0.2), normal(1200, 3, 1))
    assert narrow["precision"].value > 0.9, "all of it is real"
    assert narrow["recall"].value < 0.3, "and little of what is real is there"
    wide = measured("precision-recall", normal(900, 3, 0, scale=4.0), normal(1200, 3, 1))
    assert wide["precision"].value < 0.3 < 0.9 < wide["recall"].value


def test_density_and_coverage_have_their_expected_values():
    k, n = 5, 1000
    same = [measured("density-coverage", normal(n, 6, s), normal(n, 6, s + 50)) for s in range(4)]
    assert np.mean([f["density"].value for f in same]) == pytest.approx(1, abs=0.05)
    assert np.mean([f["coverage"].value for f in same]) == pytest.approx(1 - 2.0**-k, abs=0.01)
    half = torch.cat([normal(n // 2, 6, 0), normal(n // 2, 6, 1, 100.0)])  # one of two modes is lost
    lost = measured("density-coverage", normal(n, 6, 2), half)
    assert lost["coverage"].value == pytest.approx(0.5, abs=0.02)
    assert measured("density-coverage", normal(n, 6, 2, -100.0), half)["density"].value == 0


def test_neighbours_by_hand():
    y = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(y, 1).tolist() == [1, 1, 2, 4]
    assert radii(y, 2).tolist() == [3, 2, 3, 6]
    assert radii(y, 9).tolist() == [7, 6, 4, 7], "the farthest, where there are fewer"
    x = torch.tensor([[0.5], [9.0], [20.0], [21.0]])  # reach of y for k=1: [-1,1], [0,2], [1,5], [3,11]
    found = PrecisionRecall(k=1)(x, y)  # reach of x: 8.5 around 0.5 and 9, 1 around 20 and 21
    assert found["precision"].value == 0.5
    assert found["recall"].value == 1.0
    wide = normal(2 * BLOCK + 7, 3, 0) + 1e4
    direct = torch.cdist(wide.double(), wide.double()).sort(1).values[:, 3]
    torch.testing.assert_close(radii(wide, 3).double(), direct, rtol=1e-2, atol=1e-3)


def test_more_of_the_reference_does_not_change_what_neighbours_say():
    x, y = normal(300, 4, 0), normal(3000, 4, 1)
    few, many = measured("density-coverage", x, y[:300]), measured("density-coverage", x, y)
    assert many["coverage"].n == 300
    assert many["coverage"].value == pytest.approx(few["coverage"].value, abs=0.05)


def test_the_noise_floor_is_what_a_perfect_copy_scores():
    reference, full = Reference(normal(3000, 16, 0), "normal"), normal(1000, 16, 1)
    found, gap, warning = figures(full, full + 0.3, reference)
    assert not gap
    assert not warning
    copies = [frechet_distance(moments(normal(1000, 16, s)), moments(reference.features)) for s in range(2, 12)]
    fd = found["fd"]
    assert fd.floor.value == pytest.approx(np.mean(copies), rel=0.2), "at the n of the figure, not of the halves"
    assert fd.float.value == pytest.approx(fd.floor.value, rel=0.3)
    assert fd.quantized.value > 10 * fd.floor.value
    for name, figure in found.items():
        worse = figure.quantized.value - figure.float.value
        noise = abs(figure.float.value - figure.floor.value)
        assert abs(worse) > 2 * noise or name == "precision", name
        for value in (figure.float, figure.quantized, figure.floor):
            assert value.low <= value.value <= value.high


def test_a_generator_that_knows_its_training_images_has_a_gap():
    train, test = normal(500, 8, 0), normal(700, 8, 1)
    again = train[torch.randint(500, (400,), generator=torch.Generator().manual_seed(2))]
    assert frechet_gap(again, test, train).low > 0
    honest = frechet_gap(normal(400, 8, 3), test, train)
    assert honest.low < 0.05
    assert abs(honest.value) < frechet_gap(again, test, train).value
    gap = figures(again, again + 1, Reference(test, "test", train=train), draws=10)[1]
    assert gap["fd_float"].value == pytest.approx(frechet_gap(again, test, train, draws=10).value)
    assert set(gap) == {"fd_float", "fd_quantized"}


def test_the_gap_of_errors():
    gap = gap_db(0.01, 0.0005, Interval(0.02, 0.018, 0.022, 100))
    assert gap.value == pytest.approx(10 * math.log10(2))
    assert gap.high - gap.value == pytest.approx(2 * math.hypot(0.05, 0.05) * 10 / math.log(10))
    assert gap_db(0.0, 0.0, Interval(0.02, 0.018, 0.022, 100)) is None


def test_paired_features_by_hand():
    before = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    pair, unlike, share = feature_distance(before, before + torch.tensor([0.0, 2.0]))
    assert pair.value == 4
    assert unlike.value == pytest.approx((25 + 25 + 64) / 3)
    assert share.value == pytest.approx(4 / 38)
    assert feature_distance(torch.ones(3, 2), torch.ones(3, 2))[2] is None, "all inputs give the same"
    with pytest.raises(CalibrationError, match="need 2 samples or more of both, there are 1 and 1"):
        feature_distance(before[:1], before[:1])


def test_fewer_samples_than_dimensions_fall_back_and_name_both_numbers(deconv):
    spread = torch.linspace(3, 0.1, 50)
    target = Reference(normal(400, 50, 0) * spread, "normal")
    found, _, warning = figures(normal(40, 50, 1) * spread, normal(40, 50, 1) * spread + 1, target, draws=10)
    assert "40 generated and 400 of the reference for 50 feature dimensions" in warning
    assert "first 10 principal components" in warning
    axes, _ = principal_axes(moments(target.features), 40)
    assert axes.shape == (50, 10)
    assert axes[:10].square().sum() > 8, "the widest of 50 independent axes"
    on = [moments(split(rows, axes), 10) for rows in (normal(40, 50, 1) * spread, target.features)]
    assert found["fd"].float.value == pytest.approx(frechet_distance(*on), rel=1e-4)
    assert found["fd"].quantized.value > found["fd"].float.value
    assert principal_axes(moments(target.features), 50) == (None, "")
    whole = moments(normal(40, 50, 1) * spread).on(axes)
    torch.testing.assert_close(whole.rest, on[0].rest, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.mean, on[0].mean, rtol=1e-4, atol=1e-6)
    beside = (normal(1, 50, 9).double()[0] @ (torch.eye(50) - axes @ axes.T)).float() * 3
    moved = figures(normal(40, 50, 1) * spread, normal(40, 50, 1) * spread + beside, target, draws=10)[0]["fd"]
    assert moved.quantized.value > moved.float.value + beside.square().sum() / 2, "what is beside the axes counts"
    model, batches = deconv
    with pytest.warns(UserWarning, match="few samples: 12 generated and 12 of the reference for 192 feature dimens"):
        report = validate(model, {}, batches)
    assert "192 feature dimensions" in report.warnings[0]


def test_figures_do_not_depend_on_batches(deconv):
    model, batches = deconv
    (whole,) = [torch.cat(column) for column in zip(*batches, strict=True)]
    reports = [validate(model, {"main.0.weight": "w2"}, [(z,) for z in whole.split(size)]) for size in (3, 4, 12)]
    for report in reports[1:]:
        assert set(report.figures) == set(reports[0].figures)
        for name, figure in report.figures.items():
            assert figure.quantized.value == pytest.approx(reports[0].figures[name].quantized.value, rel=1e-4), name
        assert report.feature_distance.value == pytest.approx(reports[0].feature_distance.value, rel=1e-5)
