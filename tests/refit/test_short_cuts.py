"""What makes a refit fast gives what the plain formula does: rows at places, Gram matrices, walks, statistics."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depfuse.data import Loader, Preprocessing, Split
from depfuse.models import build_network
from depfuse.refit.layerwise import ridge as regression
from depfuse.refit.layerwise.ridge import Rows, gram, ridge
from depfuse.refit.layerwise.rows import Window
from depfuse.refit.program.decomposition import DecomposedNetwork
from depfuse.refit.program.folded import Folded
from depfuse.refit.program.graph import Program
from depfuse.refit.program.units import find_units
from depfuse.refit.program.walk import Walk
from depfuse.renorm import reset_batch_norm


@st.composite
def convolutions(draw) -> tuple[nn.Module, torch.Tensor]:
    """A convolution in float64, transposed or not, and an input."""
    axes, transposed = draw(st.integers(1, 2)), draw(st.booleans())
    each = [
        {
            "kernel_size": draw(st.integers(1, 3)),
            "stride": draw(st.integers(1, 3)),
            "padding": draw(st.integers(0, 2)),
            "dilation": draw(st.integers(1, 2)),
        }
        for _ in range(axes)
    ]
    reach = [own["dilation"] * (own["kernel_size"] - 1) for own in each]
    if transposed:  # and something is left of the output
        for own, extent in zip(each, reach, strict=True):
            own["padding"] = min(own["padding"], extent)
            own["output_padding"] = draw(st.integers(0, max(own["stride"], own["dilation"]) - 1))
    sizes = [draw(st.integers(2 if transposed else extent + 1, 8)) for extent in reach]
    if transposed:
        for own, size, extent in zip(each, sizes, reach, strict=True):
            most = ((size - 1) * own["stride"] + extent + own["output_padding"]) // 2
            own["padding"] = min(own["padding"], most)
    groups, channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    torch.manual_seed(draw(st.integers(0, 100)))
    named = {name: tuple(own[name] for own in each) for name in each[0]}
    kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d] if transposed else [nn.Conv1d, nn.Conv2d]
    layer = kinds[axes - 1](groups * channels, groups * outputs, **named, groups=groups, bias=False).double()
    return layer, torch.randn(2, groups * channels, *sizes, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.booleans(), st.data())
def test_rows_at_places_are_the_convolution_there(drawn, last, data) -> None:
    layer, x = drawn
    (unit,) = find_units(Program(layer, x), ())
    window, weight = Window.of(unit.node), layer.weight.detach()
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    output = layer(x).detach()
    assert torch.equal(window.weight(window.matrix(weight), weight.shape), weight)
    chosen = data.draw(st.lists(st.integers(0, window.positions - 1), min_size=1, max_size=5, unique=True))
    places = torch.tensor(sorted(chosen))
    for own in (None, places):
        rows = window.inputs(x, own) @ window.matrix(weight)
        torch.testing.assert_close(rows, window.outputs(output, own), rtol=1e-10, atol=1e-10)
    gathered = window.gathered(output, places)
    assert gathered.shape == (len(x), output.shape[1], len(places))
    assert torch.equal(window.outputs(gathered), window.outputs(output, places))


def test_places_of_tokens_are_gathered_with_their_channels_last() -> None:
    window = Window(None, 6)
    y, places = torch.randn(4, 2, 3, 5), torch.tensor([1, 4])
    assert torch.equal(window.outputs(window.gathered(y, places)), window.outputs(y, places))


@pytest.mark.parametrize("width", [5, 23, 64])
def test_half_the_blocks_of_a_gram_matrix_are_enough(width: int) -> None:
    small = {"columns": 8, "block": 50}
    x = torch.randn(2, 130, width)
    wanted = x.double().mT @ x.double()
    found = gram(x, x, **small)
    torch.testing.assert_close(found, found.mT, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gram(x, x[:, :, :3], **small), wanted[:, :, :3], rtol=1e-4, atol=1e-4)
    twice = regression.add_gram(found.clone(), x, x, **small)
    torch.testing.assert_close(twice, 2 * found)


@pytest.mark.parametrize("noise", [0.0, 0.3, 30.0])
def test_the_chosen_strength_is_at_least_as_good_as_its_neighbours(noise: float) -> None:
    """Also by factors in float32, which are for the choice alone."""
    torch.manual_seed(1)
    x = torch.cat([torch.randn(1, 240, 30) * torch.logspace(0, -3, 30), torch.ones(1, 240, 1)], 2)
    y = x @ torch.randn(1, 31, 4) + noise * torch.randn(1, 240, 4)
    prior = torch.zeros(1, 30, 4)
    found = ridge(Rows(x, y), prior, intercept=True)
    train, rest = Rows(x, y).part(0, 210), Rows(x, y).part(210, 240)
    errors = [rest.error(ridge(train, prior, intercept=True, strengths=(s,)).weight) for s in regression.STRENGTHS]
    chosen = regression.STRENGTHS.index(found.strength)
    near = errors[max(0, chosen - 1) : chosen + 2]
    assert errors[chosen] == pytest.approx(min(near), rel=1e-6)
    quick = ridge(Rows(x, y), prior, intercept=True, wide=8)
    assert quick.strength == found.strength
    assert torch.equal(quick.weight, found.weight)


class Branches(nn.Module):
    """Two branches that meet, one with a BatchNorm that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Conv2d(1, 6, 1)
        self.first, self.second, self.alone = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        y = F.relu(self.first(self.one(x)) + self.second(self.two(x)))
        return self.head(F.relu(self.alone(y * y)).mean((2, 3)))


def images(count: int, batch_size: int = 10) -> Loader:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=batch_size)


@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("made", [Branches, lambda: build_network("digits_resnet(width=0.5)")])
def test_a_folded_walk_passes_the_values_of_the_network(made, limit: int) -> None:
    model, loader = made().eval(), images(40)
    reset_batch_norm(model, loader)
    program = Program(model, next(iter(loader))[0])
    units = find_units(program, ())
    plain = Walk(program, [model.state_dict()], loader)
    folded = Walk(program, [model.state_dict()], loader, limit, Folded(program, units))
    for unit in units:
        needed = [unit.target, unit.input]
        end = plain.position(unit.target) + 1
        for (one,), (two,) in zip(plain.until([end], needed), folded.until([end], needed), strict=True):
            for node in needed:
                torch.testing.assert_close(two[node], one[node], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_batches_that_were_left_out_are_made_up_for(limit: int) -> None:
    model, loader = Branches().eval(), images(43)
    program = Program(model, loader.example(8))
    units = find_units(program, ())
    walk = Walk(program, [model.state_dict()], loader, limit)
    assert walk.size == 8
    for unit, count in itertools.zip_longest(units, (1, 3, 2), fillvalue=None):
        found = [
            own[0][unit.target].clone() for own in walk.until([walk.position(unit.target) + 1], [unit.target], count)
        ]
        assert len(found) == (count or len(loader))
    wanted = [model(batch[:8]).detach() for batch, _ in loader]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_renewed_statistics_are_mean_and_variance_of_what_a_batch_norm_sees() -> None:
    model, loader = Branches().eval(), images(60, batch_size=20)
    before = torch.cat([model(batch) for batch, _ in loader]).detach()
    decomposed = DecomposedNetwork.create(model, loader)
    decomposed.renew_statistics()
    for name, layer in (("first", model.one), ("second", model.two)):
        seen = torch.cat([layer(batch) for batch, _ in loader]).double().transpose(0, 1).flatten(1)
        norm = getattr(model, name)
        torch.testing.assert_close(norm.running_mean.double(), seen.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), seen.var(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.cat([model(batch) for batch, _ in loader]), before, rtol=1e-4, atol=1e-5)
