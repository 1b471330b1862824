"""Decisions about token ids and masks: both ways are proved; and networks as transformers 5 builds them."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.fusion.parents import Parents
from depfuse.groups import find_groups, not_followed, prove_groups, random_permutations
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.precision import DoublePrecision

IDS = torch.tensor([[1, 4, 2, 5]])
FULL, PADDED = torch.ones(1, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 0]])


class Masked(nn.Module):
    """A mask of ones is left out, as in transformers; `order` needs the channels' order where there is padding."""

    def __init__(self, order: bool = False, refuses: bool = False) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(9, 12), nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)
        self.order, self.refuses = order, refuses

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = F.gelu(self.inner(self.embedding(ids)))
        if not mask.all():
            if self.refuses:
                raise ValueError("no padding, please")
            x = (x.cumsum(-1) if self.order else x) * mask[..., None]
        return self.head(x.mean(1))


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
def test_a_decision_about_a_mask_fixes_nothing(mask: Tensor) -> None:
    torch.manual_seed(0)
    network = Masked().eval()
    groups = prove_groups(network, find_groups(network, [IDS, mask]), [IDS, mask])
    assert groups.both_ways
    assert [group.size for group in groups.free] == [12, 10]
    assert not not_followed(groups)
    other, state = evaluation_copy(network), dict(network.state_dict())
    for name, order in random_permutations(groups, 1).items():
        state = groups[name].permute(state, order)
    other.load_state_dict(state)
    recipe = Recipe(criterion="weights", refit="none", renorm="none")
    child = fuse(Parents([network, other], example=[IDS, mask]), recipe).child
    for seen in (FULL, PADDED):
        with torch.no_grad():
            torch.testing.assert_close(child(IDS, seen), network(IDS, seen))


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
def test_what_only_the_other_way_needs_is_found(mask: Tensor) -> None:
    torch.manual_seed(0)
    network = Masked(order=True).eval()
    groups = prove_groups(network, find_groups(network, [IDS, mask]), [IDS, mask])
    assert [group.size for group in groups.free] == [12]
    assert len(not_followed(groups)) == 1


def test_a_way_that_does_not_run_is_not_proved() -> None:
    network = Masked(refuses=True).eval()
    groups = find_groups(network, [IDS, FULL])
    assert not groups.both_ways
    assert not groups.free
    assert all("bool() in the network itself" in why for why in not_followed(groups).values())


class Asking(nn.Module):
    """A question about activations, which a permutation may answer otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        with torch.no_grad():
            chosen = x.argmax(-1)
        return self.head(x.sum(1) if (chosen * mask).any() else x.mean(1))


def test_a_question_about_activations_still_fixes_channels() -> None:
    groups = find_groups(Asking().eval(), [IDS, FULL])
    assert not groups.free
    assert not groups.both_ways


class Collector:
    """What transformers keeps hidden states in during one call."""

    def __init__(self) -> None:
        self.states: ContextVar[list[Tensor] | None] = ContextVar("states", default=None)
        self.compiling = False


COLLECTOR = Collector()


def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Keep a hidden state, where a call wants it."""
    states = COLLECTOR.states.get()
    if states is not None:
        states.append(output)


class Collecting(nn.Module):
    """The head reads what hooks collected; they are installed in the first call, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(11, 2)
        self.installed = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.installed:
            self.installed = True
            for layer in (self.first, self.second):
                layer.register_forward_hook(collect)
        states: list[Tensor] = []
        token = COLLECTOR.states.set(states)
        try:
            self.second(torch.tanh(self.first(x)))
        finally:
            COLLECTOR.states.reset(token)
        return self.head(torch.cat([torch.relu(state) for state in states], -1))


def test_hooks_that_write_to_a_variable_of_the_call_are_copied() -> None:
    torch.manual_seed(0)
    network, x = Collecting().eval(), torch.randn(1, 4)
    network(x)
    groups = prove_groups(network, find_groups(network, x), x)
    assert [group.size for group in groups.free] == [6, 5]
    copied = evaluation_copy(network)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), network(x))
        copied.second.weight.zero_()
        assert not torch.allclose(copied(x), network(x))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped products yet")
@pytest.mark.parametrize(
    "shapes", [((7, 16), (2, 16, 8)), ((2, 8, 16), (16, 8)), ((8, 8), (8, 16)), ((2, 4, 16), (2, 16, 8))]
)
def test_grouped_products_have_float64(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(shape) for shape in shapes)
    offsets = None if a.dim() == b.dim() == 3 else torch.tensor([3, 7], dtype=torch.int32)
    if a.dim() != 2 or b.dim() != 3:
        offsets = None if offsets is None else torch.tensor([4, 8], dtype=torch.int32)
    wanted = F.grouped_mm(a, b, offs=offsets)
    with DoublePrecision():
        found = F.grouped_mm(a.double(), b.double(), offs=offsets)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=1e-5)


class Positioned(nn.Module):
    """A branch for positions whose width is a sixteenth of the channels: none, where these are few."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.positions, self.norm, self.bias = nn.Linear(2, 8 // 16), nn.LayerNorm(8 // 16), nn.Linear(8 // 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(8.0).view(4, 2)
        return self.head(F.relu(self.stem(x) + self.bias(F.relu(self.norm(self.positions(places))))))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_channels_are_no_obstacle() -> None:
    network, tokens = Positioned().eval(), torch.randn(1, 4, 3)
    groups = prove_groups(network, find_groups(network, tokens), tokens)
    assert [group.size for group in groups.free] == [8]


class Choosing(nn.Module):
    """Gives some of its tokens: those of which the first channel is positive, as a detector gives boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.chooses = nn.Linear(3, 6), nn.Linear(6, 2), False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(x))
        scores = self.head(hidden)
        return scores[hidden[..., 0] > 0] if self.chooses else scores


def test_a_channel_that_says_how_many_outputs_there_are_is_fixed() -> None:
    torch.manual_seed(0)
    network, tokens = Choosing().eval(), torch.randn(1, 16, 3)
    groups = find_groups(network, tokens)
    assert [group.size for group in groups.free] == [6]
    network.chooses = True
    assert [group.size for group in prove_groups(network, groups, tokens).free] == [5], "the others may be exchanged"
