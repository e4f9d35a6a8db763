"""Each cheap estimator against the exact value of what it estimates."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch import CalibrationError, ModelError, UsageError
from mpsearch.api import make_subject
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.local import Local
from mpsearch.sensitivity.mask import Mask
from mpsearch.sensitivity.noise import input_noise
from mpsearch.sensitivity.nuclear import Nuclear, nuclear_norm
from mpsearch.sensitivity.one_pass import OnePass
from mpsearch.sensitivity.orm import Orm, gram, orthogonality
from mpsearch.sensitivity.perturbation import Perturbation
from mpsearch.sensitivity.replays import per_sample
from mpsearch.sensitivity.signed import Signed
from mpsearch.types import parse_formats

METHODS = {"local": Local, "fisher": Fisher, "orm": Orm, "mask": Mask, "nuclear": Nuclear, "signed": Signed}
FORMATS = parse_formats(["w2", "w4", "w4a4", "w8a8", "float"])


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def subject_of(model, *batches, seed=0):
    """A subject of ``model`` with weights that are the same every time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return make_subject(model, [(batch,) for batch in batches])


class Curved(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 4, bias=False), nn.Tanh())


class Idle(nn.Module):
    """One layer is never called, one is called in vain."""

    def __init__(self):
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_that_is_never_called_does_no_damage(name):
    subject = subject_of(Idle(), draw(8, 5))
    formats = parse_formats(["w2", "w4", "w4a4"])
    table = METHODS[name]()(subject, formats)
    truth = Perturbation()(subject, formats)
    assert np.array_equal(np.isnan(table.values), np.isnan(truth.values))
    for row, used in enumerate([True, False, True]):
        assert (np.nanmax(np.abs(table.values[row])) > 0) == used
        assert (np.nanmax(truth.values[row]) > 0) == used


# local


def test_local_is_the_mean_square_of_the_layers_own_change(deconv):
    model, batches = deconv
    subject = make_subject(model, batches)
    formats = parse_formats(["w3", "w3a4"])
    table = Local()(subject, formats)
    grids = subject.grids(formats)
    model.eval()
    run = {
        "main.0.weight": lambda x, w: F.conv_transpose2d(x, w, None, 1, 0),
        "main.3.weight": lambda x, w: F.conv_transpose2d(x, w, model.main[3].bias, 2, 1),
        "main.5.weight": lambda x, w: F.conv2d(x, w, model.main[5].bias, padding=1),
    }
    for row, (name, function) in enumerate(run.items()):
        errors = {format: [] for format in formats}
        for (z,) in batches:
            for sample in z:  # one at a time
                x = model.main[: int(name[5])](sample[None, :, None, None]).detach()
                float_output = function(x, subject.bank.weight(name))
                for format in formats:
                    read = grids[name, format.act_only](x) if format.act_bits else x
                    change = function(read, subject.bank.dequantized(name, format)) - float_output
                    errors[format].append(change.double().square().mean().item())
        for column, format in enumerate(formats):
            assert table.values[row, column] == pytest.approx(np.mean(errors[format]), rel=1e-4)
            assert table.stderr[row, column] == pytest.approx(np.std(errors[format], ddof=1) / 12**0.5, rel=1e-3)


class Noisy(nn.Linear):
    """Draws noise, counts its calls and writes into what it reads, all in one forward pass."""

    def __init__(self):
        super().__init__(5, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        noise = torch.randn(len(x), 5)
        return super().forward(x.mul_(self.calls)) + 100 * noise


def test_replays_see_the_input_the_noise_and_the_buffers_of_the_real_call(snapshot):
    model = nn.Sequential(Noisy(), nn.Tanh(), nn.Linear(5, 3))
    subject = subject_of(model, draw(9, 5), draw(7, 5, seed=2))
    shot = snapshot(model)
    formats = parse_formats(["w3"])
    table = Local()(subject, formats)
    shot.check()
    x = torch.cat([args[0] for args in subject.calibration.batches])
    delta = subject.bank.dequantized("0.weight", formats[0]) - subject.bank.weight("0.weight")
    assert table.values[0, 0] == pytest.approx((x @ delta.T).square().mean().item(), rel=1e-3)  # no 100 in it
    single = subject_of(model, draw(9, 5))
    truth = Perturbation()(single, formats)
    assert Local()(single, formats).values[1, 0] == pytest.approx(truth.values[1, 0], rel=1e-5), "the last output"


def test_local_knows_layers_that_run_twice_and_tied_ones():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))

    model = Twice()
    subject = subject_of(model, draw(8, 5))
    formats = parse_formats(["w3"])
    delta = subject.bank.dequantized("a.weight", formats[0]) - subject.bank.weight("a.weight")
    x = [draw(8, 5)]
    for _ in range(2):
        x.append(torch.tanh(model.a(x[-1])).detach())
    expected = np.mean([(read @ delta.T).square().mean().item() for read in x])
    assert Local()(subject, formats).values[0, 0] == pytest.approx(expected, rel=1e-5)


def test_outputs_by_sample():
    x = draw(6, 4, 3, 2)
    assert torch.equal(per_sample(x, 6), x.flatten(2))
    folded = per_sample(x, 2)  # three patches a sample
    assert folded.shape == (2, 4, 18)
    assert torch.equal(folded[1, 2], x[3:, 2].flatten())
    assert torch.equal(per_sample(x[:, :, 0, 0], 6), x[:, None, :, 0, 0])
    assert torch.equal(per_sample(x[:5], 2), x[:5].reshape(1, 1, -1).expand(2, -1, -1))


# fisher


def exact_fisher(model, subject, formats):
    """``Σ_w diag(JᵀJ)_w ΔW_w² / n`` from one backward pass for each output element."""
    (x,) = subject.calibration.batches[0]
    images = model(x)
    names = [layer.name for layer in subject.layers]
    weights = [dict(model.named_parameters())[name] for name in names]
    diagonals = [torch.zeros_like(w) for w in weights]
    for element in images.flatten():
        for diagonal, row in zip(diagonals, torch.autograd.grad(element, weights, retain_graph=True), strict=True):
            diagonal += row.square()
    deltas = [[subject.bank.dequantized(n, f) - subject.bank.weight(n) for f in formats] for n in names]
    scores = [[(d * e.square()).sum().item() for e in row] for d, row in zip(diagonals, deltas, strict=True)]
    return np.array(scores) / images.numel()


def test_fisher_is_the_exact_diagonal():
    model = Curved()
    subject = subject_of(model, draw(6, 5))
    formats = parse_formats(["w2", "w3", "w6"])
    table = Fisher(probes=3000)(subject, formats)
    exact = exact_fisher(model, subject, formats)
    assert (np.abs(table.values - exact) <= 4 * table.stderr + 1e-5 * exact).all()
    assert (table.stderr < 0.05 * exact).all()


def test_fisher_drops_what_correlated_inputs_add():
    """One output, all inputs equal: errors of one row add up or cancel, which only one-pass sees."""
    subject = subject_of(nn.Linear(20, 1, bias=False), torch.ones(4, 20))
    formats = parse_formats(["w2", "w3"])
    truth = Perturbation()(subject, formats).values
    delta = [subject.bank.dequantized("weight", f) - subject.bank.weight("weight") for f in formats]
    assert OnePass()(subject, formats).values == pytest.approx(truth, rel=1e-4)
    assert Fisher()(subject, formats).values[0] == pytest.approx([d.square().sum().item() for d in delta], rel=1e-4)


def test_fisher_of_activations_is_the_diagonal_too():
    subject = subject_of(nn.Linear(5, 3, bias=False), draw(50, 5))
    (format,) = parse_formats(["a4"])
    x = subject.calibration.batches[0][0]
    error = subject.grids([format])["weight", format](x) - x
    expected = (error.square() @ subject.bank.weight("weight").square().T).mean().item()
    table = Fisher(probes=2000)(subject, [format])
    assert abs(table.values[0, 0] - expected) <= 4 * table.stderr[0, 0]
    assert table.stderr[0, 0] < 0.1 * expected


# orm


def naive_orm(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


class Branches(nn.Module):
    """Registered in another order than they run; ``twin`` rotates and scales what ``one`` gives."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.one, self.twin, self.other = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(5, 4)

    def forward(self, x):
        h = self.one(x)
        return self.last(torch.tanh(self.twin(h))) + self.other(x.flip(1)).sum()

    def features(self, x):
        h = self.one(x)
        return [f.detach().double().numpy() for f in (self.last(torch.tanh(self.twin(h))), h, self.twin(h))] + [
            self.other(x.flip(1)).detach().double().numpy()
        ]


def branches():
    model = Branches()
    subject_of(model, draw(24, 5))
    with torch.no_grad():
        model.twin.weight.copy_(3 * torch.linalg.qr(draw(6, 6))[0])
    return model, make_subject(model, [(draw(24, 5),)])


def test_orm_agrees_with_the_definition():
    model, subject = branches()
    similarity, order = orthogonality(subject)
    features = model.features(draw(24, 5))
    expected = [[naive_orm(a, b) for b in features] for a in features]
    assert np.allclose(similarity, expected, atol=1e-6)
    assert similarity[1, 2] == pytest.approx(1, abs=1e-6), "a rotated and scaled copy"
    assert similarity[0, 1] < 0.95
    assert [subject.layers[row].name for row in order] == ["one.weight", "twin.weight", "last.weight", "other.weight"]


def test_orm_maximises_the_objective_of_the_paper():
    """Over all maps, the table's order is that of ``Σ_i b_i / (L−i+1) Σ_{j≥i} θ_j``, which is written out here."""
    model, subject = branches()
    formats = parse_formats(["w2", "w3", "w4"])
    beta = 2.0
    table = Orm(beta=beta)(subject, formats)
    last, one, twin, other = model.features(draw(24, 5))
    features = [one, twin, last, other]  # as they run
    gamma = [sum(naive_orm(a, b) for b in features if b is not a) for a in features]
    theta = np.exp(-beta * np.array(gamma))
    weight = [theta[i:].sum() / (4 - i) for i in range(4)]
    rows = [1, 2, 0, 3]
    choices = list(itertools.product(range(3), repeat=4))
    paper = [sum(w * (2 + c) for w, c in zip(weight, choice, strict=True)) for choice in choices]
    ours = [sum(table.values[row, c] for row, c in zip(rows, choice, strict=True)) for choice in choices]
    assert np.corrcoef(paper, ours)[0, 1] == pytest.approx(-1, abs=1e-9)
    assert (table.stderr == 0).all()


def test_orm_multiplies_with_the_rounding_noise_on_request():
    _, subject = branches()
    (format,) = formats = parse_formats(["w3a6"])
    method = Orm(by="error")
    importance = method.importance(subject)
    (x,) = subject.calibration.batches[0]
    weight = subject.bank.weight("one.weight")
    noise = (subject.bank.dequantized("one.weight", format) - weight).square().sum() / weight.square().sum()
    read = (subject.grids(formats)["one.weight", format.act_only](x) - x).square().sum() / x.square().sum()
    assert input_noise(subject, formats)["one.weight", format.act_only] == pytest.approx(read.item(), rel=1e-5)
    table = method(subject, formats)
    assert table.value("one.weight", "w3a6") == pytest.approx(importance[1] * (noise + read).item(), rel=1e-5)


def test_orm_pools_batches_and_does_not_vanish_in_deep_networks():
    model = nn.Sequential(*(layer for _ in range(60) for layer in (nn.Linear(4, 4), nn.Tanh())))
    subject = subject_of(model, draw(9, 4), draw(5, 4, seed=3))
    importance = Orm(beta=10.0).importance(subject)
    assert importance.max() > 0.01
    similarity, _ = orthogonality(subject)
    first = [model[0](args[0]).detach().double() for args in subject.calibration.batches]
    third = [model[:3](args[0]).detach().double() for args in subject.calibration.batches]
    inner = [
        [sum((gram(a) * gram(b)).sum() for a, b in zip(x, y, strict=True)) for y in (first, third)]
        for x in (first, third)
    ]
    assert similarity[0, 1] == pytest.approx(float(inner[0][1] / (inner[0][0] * inner[1][1]) ** 0.5), rel=1e-6)
    with pytest.raises(CalibrationError, match="orm compares the samples of a batch"):
        Orm()(subject_of(nn.Linear(4, 4), draw(1, 4), draw(1, 4)), FORMATS)


def test_features_that_do_not_vary_have_no_gram():
    assert (gram(draw(1, 100).expand(6, -1)) == 0).all()


# nuclear


def test_nuclear_is_the_nuclear_norm_times_the_squared_change(deconv):
    model, batches = deconv
    subject = make_subject(model, batches)
    (format,) = parse_formats(["w3"])
    table = Nuclear()(subject, [format])
    model.eval()
    x = torch.cat([model.main[:5](z[:, :, None, None]).detach() for (z,) in batches])
    layer = model.main[5]
    before = layer(x).detach()
    after = F.conv2d(x, subject.bank.dequantized("main.5.weight", format), layer.bias, padding=1).detach()
    norms = torch.linalg.matrix_norm(before.flatten(2).double(), ord="nuc")  # channels × positions
    scores = norms * (after - before).double().square().sum((1, 2, 3))
    assert table.value("main.5.weight", "w3") == pytest.approx(scores.mean().item(), rel=1e-4)
    assert table.stderr[2, 0] == pytest.approx(scores.std().item() / 12**0.5, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 5, 40), (3, 40, 5), (2, 1, 7), (2, 6, 6)])
def test_nuclear_norms(shape):
    matrices = draw(*shape)
    matrices[0, :, 0] = matrices[0, :, -1]  # not of full rank
    expected = torch.linalg.matrix_norm(matrices.double(), ord="nuc")
    torch.testing.assert_close(nuclear_norm(matrices), expected, rtol=1e-6, atol=0)


# mask


def test_masking_everything_is_taking_the_layer_out():
    model = Curved()
    subject = subject_of(model, draw(10, 5), draw(6, 5, seed=2))
    formats = parse_formats(["w2", "w4"])
    table = Mask(share=1.0, draws=1)(subject, formats)
    x = torch.cat([args[0] for args in subject.calibration.batches])
    images = model(x).detach()
    for row, (name, blank) in enumerate({"0.weight": torch.zeros(16, 4), "2.weight": torch.zeros(16, 4)}.items()):
        errors = (blank - images).double().square().mean(1)
        weight = subject.bank.weight(name)
        for column, format in enumerate(formats):
            noise = (subject.bank.dequantized(name, format) - weight).square().sum() / weight.square().sum()
            assert table.values[row, column] == pytest.approx(errors.mean().item() * noise.item(), rel=1e-5)
            assert table.stderr[row, column] == pytest.approx(errors.std().item() / 4 * noise.item(), rel=1e-4)


def test_masked_softmax_outputs_have_their_divergence():
    model = Curved()
    subject = subject_of(model, draw(10, 5))
    (format,) = formats = parse_formats(["w3"])
    table = Mask(share=1.0, draws=1, output="softmax")(subject, formats)
    images = model(draw(10, 5)).detach().double()
    flat = torch.zeros(10, 4, dtype=torch.float64).log_softmax(1)
    divergence = F.kl_div(flat, images.log_softmax(1), log_target=True, reduction="batchmean")
    weight = subject.bank.weight("2.weight")
    noise = (subject.bank.dequantized("2.weight", format) - weight).square().sum() / weight.square().sum()
    assert table.value("2.weight", "w3") == pytest.approx((divergence * noise).item(), rel=1e-5)


def test_masks_of_a_linear_model_estimate_its_trace():
    """``E‖(M∘W)x‖² / E‖M∘W‖²``: few weights are blanked together, so energies of columns count, not their sums."""
    subject = subject_of(nn.Linear(30, 8, bias=False), draw(40, 30))
    formats = parse_formats(["w4a6"])
    table = Mask(share=0.02, draws=60)(subject, formats)
    truth = Perturbation()(subject, formats)
    assert table.values[0, 0] == pytest.approx(truth.values[0, 0], rel=0.3)
    assert table.stderr[0, 0] < 0.1 * table.values[0, 0]
    other = Mask(share=0.02, draws=60, seed=1)(subject, formats)
    assert abs(other.values - table.values) < 4 * np.hypot(table.stderr, other.stderr)
    assert other.values != table.values


def test_masks_are_checked():
    for options in ({"share": 0.0}, {"share": 1.5}, {"draws": 0}):
        with pytest.raises(UsageError, match="mask needs"):
            Mask(**options)


# signed


def energy(images):
    return images.square().flatten(1).mean(1)


@pytest.mark.parametrize("loss", [None, energy, lambda images: images.exp().mean()], ids=["default", "each", "one"])
def test_signed_agrees_with_finite_differences(loss):
    model = Curved().double()
    x = draw(12, 5).double()
    subject = subject_of(model, x)
    method = Signed(loss=loss)
    formats = parse_formats(["w2", "w4"])
    table = method(subject, formats)
    parameters = dict(model.named_parameters())
    for row, name in enumerate(["0.weight", "2.weight"]):
        for column, format in enumerate(formats):
            delta = (subject.bank.dequantized(name, format) - subject.bank.weight(name)) * 1e-5
            values = []
            for sign in (1, -1):
                weights = {**parameters, name: parameters[name] + sign * delta}
                images = torch.func.functional_call(model, weights, (x,))
                values.append(method.value(images).item())
            expected = (values[0] - values[1]) / 2e-5
            assert table.values[row, column] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert (table.values < 0).any()
    assert (table.values > 0).any()


def test_signed_errors_are_those_over_samples_and_inputs_count():
    model = nn.Linear(5, 3, bias=False)
    subject = subject_of(model, draw(8, 5), draw(8, 5, seed=2))
    (format,) = formats = parse_formats(["w3a4"])
    table = Signed(loss=energy)(subject, formats)
    x, w = torch.cat([args[0] for args in subject.calibration.batches]), subject.bank.weight("weight")
    dx = subject.grids(formats)["weight", format.act_only](x) - x
    dw = subject.bank.dequantized("weight", format) - w
    scores = (2 * (x @ w.T) * (x @ dw.T + dx @ w.T)).mean(1)  # dL · dy of every sample
    assert table.values[0, 0] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert table.stderr[0, 0] == pytest.approx(scores.std().item() / 4, rel=1e-4)


def test_the_paired_loss_has_no_first_order_term():
    subject = subject_of(Curved(), draw(6, 5))
    (target,) = subject.reference

    def paired(images):
        return (images - target[: len(images)]).square().mean() if len(images) == 6 else images.sum() * 0

    assert (Signed(loss=paired)(subject, parse_formats(["w2", "w8"])).values == 0).all()
    assert (Signed()(subject, parse_formats(["w2", "w8"])).values != 0).all()


def test_losses_are_told_apart_in_the_memo_and_checked():
    subject = subject_of(Curved(), draw(6, 5))
    formats = parse_formats(["w3"])
    first, second = (Signed(loss=loss)(subject, formats) for loss in (lambda y: y.sum(), lambda y: -2 * y.sum()))
    assert second.values == pytest.approx(-2 * first.values)
    for loss in (lambda y: 3.0, lambda y: y.sum(0), lambda y: y.detach().mean()):
        with pytest.raises(UsageError, match=r"signed: the loss of 6 images is .*: expected a tensor with one number"):
            Signed(loss=loss)(subject, formats)
    other = torch.ones((), requires_grad=True)
    with pytest.raises(UsageError, match="does not depend on the images"):
        Signed(loss=lambda y: other * 2)(subject, formats)


def test_methods_with_gradients_say_so_where_there_are_none():
    class Sealed(nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    for name, method in METHODS.items():
        subject = subject_of(Sealed(6, 4), draw(8, 6))
        if name in ("fisher", "signed"):
            with pytest.raises(ModelError, match=r"runs without gradients .* 'perturbation'"):
                method()(subject, FORMATS)
        else:
            assert method()(subject, FORMATS).values[0, 0] > 0
    with pytest.raises(UsageError, match="at least 2 probes"):
        Fisher(probes=1)
