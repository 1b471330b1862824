"""The proof: permute every free group at random, and the network's function must not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, Literal, TypeVar

from torch import Tensor, nn

from depfuse.errors import GroupError
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups, random_permutations
from depfuse.groups.effects import first_order_effects
from depfuse.groups.generic_values import GenericNetwork
from depfuse.groups.reasons import HIDDEN, NOT_USED, OVERWRITTEN
from depfuse.groups.smaller_example import smaller_example
from depfuse.groups.splitting import find_parts, is_simple, split
from depfuse.networks.forward import Example
from depfuse.networks.isolation import undisturbed
from depfuse.progress import work
from depfuse.text import counted

Chosen = TypeVar("Chosen")

TOLERANCE = 1e-9  # of outputs in float64, relative to the largest, whose rounding stays below 1e-12
LEAST_EFFECT = 1e-6  # of permuting one slot alone, relative to the output: a proof must be able to fail
DRAWS = 3  # of generic values, for groups without effect: all channels of a small one may be silent by chance
NO_EFFECT = "not proved: permuting one of its tensors alone hardly changes the output"
SEEDS = 5  # of random numbers in eval mode: two channels may have the same ones by chance
RANDOM = ", and the network is random in eval mode"
MOST_RUNS = 200  # of the network, in each search for what fails
Extent = Literal["full", "sampled"]
SAMPLED_RUNS = 24  # of the network, in all searches of a sampled proof together
USUAL_RUNS = 5  # to draw statistics, for the first outputs, for gradients and to check them, and one to spare
SAMPLED_PERMUTATIONS = 3  # of all groups at once: a wrong group passes with a probability of at most 1/8


@undisturbed()
def prove_groups(
    model: nn.Module,
    groups: ChannelGroups,
    example: Example,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    proof: Extent = "full",
) -> ChannelGroups:
    r"""Prove the free groups in float64, and fix those that fail.

    A copy of the network gets generic values (`generic_values.py`). With f its function and f_P that after random
    permutations of all free groups at once, the error is :math:`\max |f_P(x) - f(x)| / \max |f(x)|`, taken over all
    outputs, those of auxiliary heads and of either way of a decision about inputs included, and a random input x in the
    example's shape. If it exceeds the tolerance, the failing groups are found by bisection and fixed. So is a group of
    which no tensor has an effect on the output: no error would show. Where the network runs the same operations on a
    smaller image (`smaller_example.py`), x is one, unless something is not proved by it: then all is proved by x in the
    example's shape.

    The permutations of a wrong group that keep the function on generic values are a proper subgroup of all, so at most
    half of them: a random one of all groups at once lets it pass with a probability of at most 1/2. Where a kinds of
    channels and b others are taken for one, it is :math:`1 / \binom{a + b}{a}`.

    Parameters
    ----------
    proof
        `full`: by one permutation of all groups; failing groups are told one by one, and those parts of them found that
        may be permuted, in up to `MOST_RUNS` runs of the network for each search. `sampled`: by `SAMPLED_PERMUTATIONS`
        permutations (a wrong group passes with a probability of at most 1/8), and at most `SAMPLED_RUNS` runs for all
        that fails: a group that these do not clear is fixed.

    Returns
    -------
    ChannelGroups
        The same groups, with `proof_error` set and failing groups fixed.

    Raises
    ------
    GroupError
        The network's function is not finite or does not depend on its parameters, so that nothing can be
        proved, or does not give the same output twice.
    """
    smaller = smaller_example(model, groups, example)
    if smaller is not None:
        try:
            return _prove(model, groups, smaller, seed, tolerance, _Budget(proof), whole=True)
        except (_NotWholeError, GroupError):
            pass
    return _prove(model, groups, example, seed, tolerance, _Budget(proof))


def _prove(
    model: nn.Module,
    groups: ChannelGroups,
    example: Example,
    seed: int,
    tolerance: float,
    budget: _Budget,
    *,
    whole: bool = False,
) -> ChannelGroups:
    """Prove groups and fix those that fail; or raise `_NotWholeError` there, where only the `whole` counts."""
    several = [random_permutations(groups, seed + number) for number in range(budget.permutations)]
    silent = list(groups.free)
    not_used: dict[str, str] = {}
    errors = []
    for draw in range(DRAWS if silent else 1):
        work().step(f"proving {counted(len(silent), 'channel group')} in float64", USUAL_RUNS + budget.permutations)
        damped = {slot.key for group in silent for slot in group.slots if slot.role == "produces"} if draw else ()
        network = GenericNetwork(model, example, groups, seed, draw, damped)
        name = network.name
        if written := _overwritten(groups, network):
            if whole:
                raise _NotWholeError
            return _prove(model, groups.fix(written), example, seed, tolerance, budget)
        proofs = [_Proof(name, network, permutations, budget) for permutations in several]
        if not draw:
            found = proofs[0].with_hidden(groups, tolerance)
            if whole and found is not groups:
                raise _NotWholeError
            groups = found
        for proof in proofs:
            errors.append(proof.error(silent))
            if errors[-1] > tolerance:
                if whole:
                    raise _NotWholeError
                proof.check_repeatable(tolerance)
                failing = proof.reasons(silent, tolerance)
                parts = proof.parts(groups, failing, tolerance)
                fixed = split(groups.fix({name: why for name, why in failing.items() if name not in parts}), parts)
                return _prove(model, fixed, example, seed, tolerance, budget)
        silent = proofs[0].without_effect(silent)
        not_used |= {group.name: NOT_USED for group in silent if proofs[0].not_used(group)}
        silent = [group for group in silent if group.name not in not_used]
        if not silent:
            break
    if whole and (silent or not_used):
        raise _NotWholeError
    if silent:  # to first order: nothing that is rounded, or chosen by the largest of some numbers, has an effect
        silent = proofs[0].without_effect_if_moved(silent)
    if silent and len(silent) == groups.count:
        raise GroupError(
            f"the output of {name} hardly depends on its channels on random values: its groups cannot be proved"
        )
    without_effect = {group.name: NO_EFFECT for group in silent}
    return replace(groups.fix(not_used | without_effect), proof_error=max(errors))


class _Budget:
    """How often the network may be run to find what fails: in each search or, in a sampled proof, in all together."""

    def __init__(self, proof: Extent) -> None:
        self.sampled = proof == "sampled"
        self.permutations = SAMPLED_PERMUTATIONS if self.sampled else 1
        self._left = SAMPLED_RUNS

    def begin(self, search: str, runs: int = MOST_RUNS) -> None:
        """Begin a search, and say how many runs it has."""
        self._left = self._left if self.sampled else runs
        work().step(search, max(0, self._left) or None)

    @property
    def spent(self) -> bool:
        """True if no run is left."""
        return self._left <= 0

    def spend(self) -> None:
        """Count a run."""
        self._left -= 1


def _overwritten(groups: ChannelGroups, network: GenericNetwork) -> dict[str, str]:
    """Map name -> reason, for the free groups with a tensor that the forward pass itself writes."""
    return {
        group.name: OVERWRITTEN.format(key)
        for group in groups.free
        for key in sorted({slot.key for slot in group.slots} & network.overwritten)[:1]
    }


class _Proof:
    """The network on one draw of generic values, and its output there."""

    def __init__(self, name: str, network: GenericNetwork, permutations: Mapping[str, Tensor], budget: _Budget) -> None:
        self._name, self._network, self._permutations, self._budget = name, network, permutations, budget
        self._effects: dict[str, float] = {}
        if not 0.0 < network.scale < float("inf"):
            raise GroupError(f"{name} gives no finite, non-zero output on random values: its groups cannot be proved")

    def error(self, chosen: Sequence[ChannelGroup]) -> float:
        """Measure the change of the output when these groups are permuted; for several seeds where it is random."""
        errors = []
        for number in range(SEEDS if self._network.random else 1):
            with self._network.reseeded(number):
                reference = self._network.run() if number else None
                with self._network.permuted(chosen, self._permutations):
                    errors.append(self._network.change(reference))
        return max(errors)

    def with_hidden(self, groups: ChannelGroups, tolerance: float) -> ChannelGroups:
        """Copy groups, with a reason for tensors that seem unused but change the output."""
        unused = [key for key in groups.parameters if groups.fixed_tensors.get(key) == NOT_USED]
        if not unused or (self._budget.sampled and self._budget.spent):
            return groups
        self._budget.begin(f"looking whether {counted(len(unused), 'tensor')} without a use have an effect")

        def change(keys: Sequence[str]) -> float:
            with self._network.changed(keys):
                return self._network.change()

        hidden = _bisect(unused, _Counted(change, self._budget), tolerance)
        if not hidden:
            return groups
        self.check_repeatable(tolerance)
        return replace(groups, fixed_tensors={**groups.fixed_tensors, **dict.fromkeys(hidden, HIDDEN)})

    def check_repeatable(self, tolerance: float) -> None:
        """Raise `GroupError` where the same input gives different outputs."""
        if self._network.change() > tolerance:
            raise GroupError(
                f"{self._name} gives different outputs for the same input, so that its groups cannot be proved: "
                "take out what is random in eval mode"
            )

    def without_effect(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Select the groups of which no tensor, permuted alone, changes the output.

        To first order, by gradients; where these are not the function's, or not of all outputs, and show no effect, by
        permuting: `MOST_RUNS` times, and once for each group, at most, or what is left of a sampled proof's runs.
        """
        if not groups:
            return []
        self._effects, whole = first_order_effects(self._network, groups, self._permutations, LEAST_EFFECT)
        if not whole:
            shown = {name: effect for name, effect in self._effects.items() if effect >= LEAST_EFFECT}
            self._effects = shown | self._by_permuting([group for group in groups if group.name not in shown])
        return [group for group in groups if self._effects.get(group.name, 0.0) < LEAST_EFFECT]

    def without_effect_if_moved(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Select the groups of which no tensor changes the output when it is permuted, found by permuting each."""
        effects = self._by_permuting(groups)
        return [group for group in groups if effects.get(group.name, 0.0) < LEAST_EFFECT]

    def _by_permuting(self, groups: Sequence[ChannelGroup]) -> dict[str, float]:
        """Measure, per group, the output's change when one tensor is permuted alone, up to the first with an effect."""
        effects: dict[str, float] = {}
        search = f"looking whether {counted(len(groups), 'channel group')} have an effect"
        self._budget.begin(search, MOST_RUNS + len(groups))
        for group in groups:
            largest = 0.0
            for slot in group.slots:
                if self._budget.spent:
                    return effects
                self._budget.spend()
                with self._network.moved(slot, self._permutations[group.name]):
                    largest = max(largest, self._network.change())
                if largest >= LEAST_EFFECT:
                    break
            effects[group.name] = largest
        return effects

    def not_used(self, group: ChannelGroup) -> bool:
        """Tell whether a group without effect is one that nothing reads: overwritten, or disconnected."""
        return self._effects.get(group.name) == 0.0 and all(slot.role != "consumes" for slot in group.slots)

    def reasons(self, free: Sequence[ChannelGroup], tolerance: float) -> dict[str, str]:
        """Return name -> reason, for each failing group."""
        self._budget.begin(f"finding which of {counted(len(free), 'channel group')} fail their proof")
        failing = _bisect(list(free), _Counted(self.error, self._budget), tolerance)
        random = RANDOM if self._network.random else ""
        if self._budget.sampled or len(failing) > MOST_RUNS // 4:
            return {group.name: f"not proved: permuting it with others changes the output{random}" for group in failing}
        return {
            group.name: f"not proved: permuting it changes the output by {self.error([group]):.1e}{random}"
            for group in failing
        }

    def parts(self, groups: ChannelGroups, failing: Iterable[str], tolerance: float) -> dict[str, list[list[int]]]:
        """Find, for each failing group in no block, the sets of its channels that may be permuted, where there are any.

        The network runs `MOST_RUNS` times at most: a group that needs more has none. In a random one, channels may be
        alike by chance. A sampled proof does not look for them.
        """
        found: dict[str, list[list[int]]] = {}
        if self._network.random or self._budget.sampled:
            return found
        self._budget.begin("finding channels that may be permuted where others may not")

        def holds(group: ChannelGroup, order: Tensor) -> bool:
            if self._budget.spent:
                raise _SpentError
            self._budget.spend()
            with self._network.permuted([group], {group.name: order}):
                return self._network.change() <= tolerance

        for name in failing:
            group = groups[name]
            if not is_simple(group, groups):
                continue
            try:
                parts = find_parts(group.size, partial(holds, group))
            except _SpentError:
                break
            if any(1 < len(part) < group.size for part in parts):
                found[name] = parts
        return found


class _NotWholeError(Exception):
    """Something is not proved on a smaller image."""


class _SpentError(Exception):
    """No run of the network is left."""


class _Counted(Generic[Chosen]):
    """An error function with a budget of runs; once it is spent, every choice fails."""

    def __init__(self, error: Callable[[Sequence[Chosen]], float], budget: _Budget) -> None:
        self._error, self._budget = error, budget

    @property
    def spent(self) -> bool:
        """True if no run is left."""
        return self._budget.spent

    def __call__(self, chosen: Sequence[Chosen]) -> float:
        self._budget.spend()
        return self._error(chosen)


def _bisect(chosen: list[Chosen], error: _Counted[Chosen], tolerance: float) -> list[Chosen]:
    """Find the choices that fail by themselves, or the last that fails with others; all when the runs are spent."""
    if error.spent:
        return chosen
    if not chosen or error(chosen) <= tolerance:
        return []
    if len(chosen) == 1:
        return chosen
    half = len(chosen) // 2
    failing = _bisect(chosen[:half], error, tolerance) + _bisect(chosen[half:], error, tolerance)
    return failing or chosen[-1:]
