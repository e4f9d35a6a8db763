"""True evaluations are cheaper than they look, and say the same."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch
from mpsearch import subject as subjects
from mpsearch.api import make_subject
from mpsearch.model import Reuse
from mpsearch.types import BitMap, Measured


@pytest.fixture
def fresh():
    """Makes subjects that keep no activations."""

    def make(model, batches):
        subject = make_subject(model, batches)
        subject._reuse._capacity = 0
        return subject

    return make


def maps(layers):
    """A search's worth of them: better and worse, changes early and late, activations, float layers."""
    names = [layer.name for layer in layers]
    base = dict.fromkeys(names, "w6")
    yield BitMap(base)
    for name in names:
        yield BitMap(base | {name: "w3"})
    for layer in layers:
        if layer.act_elements:
            yield BitMap(base | {layer.name: "w6a8"})
    for name in names:
        yield BitMap({other: f for other, f in base.items() if other != name})
    yield BitMap(dict.fromkeys(names, "w8"))
    for name in reversed(names):
        yield BitMap(dict.fromkeys(names, "w8") | {name: "w2"})


def test_kept_activations_change_no_number(case, fresh, snapshot):
    model, batches = case
    shot = snapshot(model)
    kept, plain = make_subject(model, batches), fresh(model, batches)
    for bitmap in maps(kept.layers):
        assert kept.error(bitmap).samples == plain.error(bitmap).samples
    shot.check()
    assert plain._reuse.served == 0


def test_convolutions_before_the_change_are_not_computed_again(deconv, monkeypatch):
    model, batches = deconv
    subject = make_subject(model, batches)
    base = dict.fromkeys((layer.name for layer in subject.layers), "w8")
    subject.error(BitMap(base))
    served, last = subject._reuse.served, subject.layers[-1].name
    monkeypatch.setattr("torch.nn.functional.conv_transpose2d", lambda *args: pytest.fail("computed again"))
    subject.error(BitMap(base | {last: "w3"}))
    assert subject._reuse.served - served == (len(subject.layers) - 1) * len(batches)


class Sneaky(nn.Module):
    """Reads the weight of its second layer before it calls the first, and writes into what its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, z: Tensor) -> Tensor:
        scale = self.two.weight.detach().abs().mean()
        hidden = self.one(z * scale)
        hidden.relu_()
        return self.two(hidden).tanh_()[:, None, None]


def test_a_weight_that_is_read_out_of_turn(fresh):
    model = Sneaky()
    batches = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)),) for i in range(2)]
    kept, plain = make_subject(model, batches), fresh(model, batches)
    for bitmap in maps(kept.layers):
        assert kept.error(bitmap).samples == plain.error(bitmap).samples


def test_nothing_is_kept_beyond_the_capacity(deconv):
    model, batches = deconv
    subject = make_subject(model, batches)
    owners = {layer.name: [m for m, _ in subject.bank.site(layer.name).owners] for layer in subject.layers}
    subject._reuse = Reuse(owners, capacity=4000)
    for bitmap in maps(subject.layers):
        subject.error(bitmap)
    assert sum(tensor.nbytes for tensor in subject._reuse._kept.values()) <= 4000


def test_a_hopeless_map_is_given_up_and_never_wins(deconv):
    model, _ = deconv
    batches = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
    subject = make_subject(model, batches)
    names = [layer.name for layer in subject.layers]
    good, bad = BitMap(dict.fromkeys(names, "w8")), BitMap(dict.fromkeys(names, "w2"))
    rival = subject.error(good)
    given_up = subject.error(bad, rival)
    assert given_up.n == 8 < rival.n == 32
    assert not given_up.beats(rival)
    assert subject.error(bad).n == 32
    assert subject.error(bad, rival).n == 32  # what is known is not forgotten
    assert subject.error(BitMap(dict.fromkeys(names, "w7")), subject.error(bad)).beats(subject.error(bad))


def test_hope_needs_a_paired_difference_beyond_doubt():
    rng = np.random.default_rng(0)
    rival = rng.lognormal(size=64)
    even, worse = rival * rng.uniform(0.7, 1.3, 64), rival * rng.uniform(1.2, 1.4, 64)
    assert not any(subjects.hopeless(even[:count], rival) for count in range(1, 64))
    assert subjects.hopeless(worse[:16], rival)
    assert not subjects.hopeless(worse[:15], rival)  # less than a quarter says nothing


def test_a_few_samples_that_outweigh_the_whole_rival_twice_leave_no_hope():
    rival = [1.0] * 16
    assert subjects.hopeless([8.1] * 4, rival)
    assert not subjects.hopeless([7.9] * 4, rival)  # four samples may vary by chance
    assert not subjects.hopeless([100.0] * 3, rival)  # less than a quarter says nothing


def test_the_answer_is_the_same_without_the_tricks(case, monkeypatch):
    model, batches = case
    found = mpsearch.allocate(model, batches, ["bits<=3.5"], effort="standard")
    monkeypatch.setattr("mpsearch.model.reuse.CAPACITY", 0)
    monkeypatch.setattr(Reuse.__init__, "__defaults__", (0,))
    monkeypatch.setattr(subjects, "HOPELESS", float("inf"))
    again = mpsearch.allocate(model, batches, ["bits<=3.5"], effort="standard")
    assert again.bitmap == found.bitmap
    assert isinstance(found.error, Measured)
    assert again.error.value == found.error.value
    assert again.evaluations == found.evaluations


def test_the_answer_is_the_same_where_no_map_is_given_up(deconv, monkeypatch):
    model, _ = deconv
    batches = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
    given_up, hopeless = [], subjects.hopeless
    monkeypatch.setattr(subjects, "hopeless", lambda *errors: given_up.append(hopeless(*errors)) or given_up[-1])
    found = mpsearch.allocate(model, batches, ["bits<=3.5"])
    assert any(given_up)
    monkeypatch.setattr(subjects, "hopeless", lambda *_: False)
    again = mpsearch.allocate(model, batches, ["bits<=3.5"])
    assert again.bitmap == found.bitmap
    assert again.error.value == found.error.value
