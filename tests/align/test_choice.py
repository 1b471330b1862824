"""Choosing between several matchings, as a whole and group by group."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.align.choice import choose, choose_by_group
from depfuse.data import Loader, Preprocessing, Split
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.parents import Parents
from depfuse.models import build_network


def candidate(*numbers: int) -> dict[str, Coupling]:
    """Couplings of groups a, b, ... that are told apart by a number: the first channel's place."""
    return {
        "abcd"[place]: Coupling(torch.arange(4).roll(number)) for place, number in enumerate(numbers)
    }  # fmt: skip


def numbers(couplings) -> tuple[int, ...]:
    return tuple(int((couplings[name].permutation == 0).nonzero()) for name in sorted(couplings))


def test_the_least_is_chosen_and_one_alone_is_not_judged():
    judged = []

    def judge(couplings):
        judged.append(numbers(couplings))
        return abs(sum(numbers(couplings)) - 3)

    assert numbers(choose([candidate(0, 0), candidate(1, 2), candidate(0, 0)], judge)) == (1, 2)
    assert judged == [(0, 0), (1, 2)]
    assert numbers(choose([candidate(3, 1), candidate(3, 1)], judge)) == (3, 1)
    assert len(judged) == 2


@given(
    costs=st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=3, max_size=3),
    given_numbers=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_independent_groups_get_the_best_of_each(costs, given_numbers):
    def judge(couplings):
        return sum(costs[place][number] for place, number in enumerate(numbers(couplings)))

    candidates = [candidate(*row) for row in given_numbers]
    found = choose_by_group(candidates, [["a"], ["b"], ["c"]], judge)
    possible = itertools.product(*[{row[place] for row in given_numbers} for place in range(3)])
    assert judge(found) == min(judge(candidate(*row)) for row in possible)
    tied = choose_by_group(candidates, [["a", "c"], ["b"]], judge)
    assert (numbers(tied)[0], numbers(tied)[2]) in {(row[0], row[2]) for row in given_numbers}
    assert judge(found) <= judge(tied) <= min(judge(own) for own in candidates)


def parents_and_images():
    torch.manual_seed(0)
    parents = [build_network("digits_resnet(width=0.5)").eval() for _ in range(2)]
    pixels = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    return parents, Loader(Split(pixels, torch.zeros(60, dtype=torch.int64)), Preprocessing(), batch_size=20)


def test_a_child_chosen_by_group_agrees_at_least_as_well():
    parents, images = parents_and_images()
    whole = fuse(parents, Recipe(refit="none"), images)
    by_group = fuse(Parents(parents, groups=whole.groups), Recipe(refit="none", choose="groups"), images)
    judge = EnsembleJudge(Ensemble(parents, ()), whole.groups, "reset", CalibrationSplit.for_matchings(images))
    assert judge(1, by_group.couplings[1]) < judge(1, whole.couplings[1])
    for group in whole.groups.free:
        assert sorted(by_group.couplings[1][group.name].permutation.tolist()) == list(range(group.size))


def test_a_judge_does_not_look_at_the_scale_of_scores():
    parents, images = parents_and_images()
    torch.nn.init.normal_(parents[0].linear.weight, std=0.5)
    parents[1] = copy.deepcopy(parents[0])
    groups = prove_groups(parents[0], find_groups(parents[0], torch.rand(1, 1, 8, 8)), torch.rand(1, 1, 8, 8))
    identity = {group.name: Coupling.identity(group.size) for group in groups.free}
    judge = EnsembleJudge(Ensemble(parents, ()), groups, "none", CalibrationSplit.for_matchings(images))
    before = judge(1, identity)
    with torch.no_grad():
        for parent in parents:
            parent.linear.weight.mul_(2.0)
            parent.linear.bias.mul_(2.0)
    assert judge(1, identity) == pytest.approx(before, rel=1e-5)


def test_a_universe_is_chosen_as_a_whole():
    with pytest.raises(RecipeError, match=r"align.choose groups"):
        Recipe.create(universe=True, choose="groups")
