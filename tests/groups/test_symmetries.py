"""Nothing is fixed without need: on tiny networks, all permutations that keep the function are found by trying."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject, settings
from random_networks import IMAGE, Drawn, random_networks
from symmetries import DenseNetwork, Search, UndecidedError, classes_of_positions, generated, symmetries_of
from test_random_networks import BOUNDED, MANY
from torch import nn

from depfuse.groups import ChannelGroups, find_groups
from depfuse.groups.reasons import OVERLAP, SINGLE

# A position that a slice singled out could still take the place of another with the same role; so could, seldom, blocks
# that have channels in common, and a channel's own positions each other's. None of these is looked for.
NOT_SOUGHT = {SINGLE, OVERLAP}


def not_sought(first: tuple[int, str | None] | None, second: tuple[int, str | None] | None) -> bool:
    """Whether the symmetries that bring the second position's channel to the first are not looked for."""
    return first is not None and (first[1] in NOT_SOUGHT or (second is not None and first[0] == second[0]))


def check_completeness(network: Drawn) -> None:
    """The free groups generate every symmetry of every axis."""
    groups = find_groups(network, torch.randn(IMAGE))
    dense = DenseNetwork(network)
    try:
        missing = Search(dense, symmetries_of(groups, dense)).missing()
    except UndecidedError:
        reject()
    if missing:
        known = classes_of_positions(network)
        missing = [
            symmetry
            for symmetry in missing
            if not any(
                place != other and not_sought(known.get((key, axis, place)), known.get((key, axis, other)))
                for (key, axis), order in symmetry.items()
                for place, other in enumerate(order)
            )
        ]
    assert not missing, "\n".join(map(str, missing))


@settings(BOUNDED, max_examples=20)
@given(random_networks(tiny=True))
def test_tiny_networks_have_no_other_symmetries(network):
    check_completeness(network)


@pytest.mark.slow
@settings(BOUNDED, max_examples=MANY)
@given(random_networks(tiny=True))
def test_many_tiny_networks_have_no_other_symmetries(network):
    check_completeness(network)


# --- the search itself --------------------------------------------------------------------------------


def chain() -> Drawn:
    """Two convolutions, the second grouped, and a head."""
    layers = [nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1, groups=2), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)]
    return Drawn(layers, [(number, (number,)) for number in range(6)], [6])


def test_dense_networks_compute_the_same():
    network = chain()
    dense = DenseNetwork(network)
    network.double().load_state_dict(dense.state)
    torch.testing.assert_close(dense.outputs(dense.values), network(dense.image).flatten(), rtol=0, atol=1e-12)


def test_the_search_finds_what_is_left_out():
    network = chain()
    groups = find_groups(network, torch.randn(IMAGE))
    dense = DenseNetwork(network)
    assert not Search(dense, symmetries_of(groups, dense)).missing()
    sizes = {name: groups[name].slots[0].index.shape[1] for name in ("layers.0#1", "layers.0#2", "layers.0#3")}
    assert sizes == {"layers.0#1": 2, "layers.0#2": 1, "layers.0#3": 1}  # the blocks, then the channels of each
    for left_out in ({"layers.0#2", "layers.0#3"}, {"layers.0#1"}, {"layers.2#1", "layers.2#2"}):
        rest = ChannelGroups(tuple(group for group in groups if group.name not in left_out))
        assert Search(dense, symmetries_of(rest, dense)).missing(), left_out


def test_input_and_output_axes_have_no_symmetry():
    network = chain()
    dense = DenseNetwork(network)
    found = Search(dense, [], most=10**6).missing()
    touched = {axis for symmetry in found for axis in symmetry}
    assert {("layers.0.weight", 0), ("layers.2.weight", 1), ("layers.5.weight", 1)} < touched
    assert not touched & {("layers.0.weight", 1), ("layers.5.weight", 0), ("layers.5.bias", 0)}


def test_generated_groups():
    assert len(generated(4, [(1, 0, 2, 3), (1, 2, 3, 0)])) == 24
    assert generated(4, [(1, 0, 3, 2)]) == {(0, 1, 2, 3), (1, 0, 3, 2)}
    assert generated(2, []) == {(0, 1)}
