"""Description of a matching: costs before and after, and correlations by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.align import Coupling, Couplings, apply_couplings
from depfuse.align.costs import activation_cost, weight_cost
from depfuse.align.coupling import flat_positions
from depfuse.align.statistics.pairwise import PairwiseCollector
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import Orbit, find_orbits
from depfuse.networks.real_state import real_state
from depfuse.networks.running import evaluating, modules_in_order
from depfuse.recipe.sections import Align


@dataclass(frozen=True, eq=False)
class MatchedGroup:
    """The matching of one group, or of the corresponding groups inside all blocks.

    Costs are means over channels, before matching (channels of the same number) and after.

    Attributes
    ----------
    name
        Of the first group.
    matrix
        (n, n) share of each source channel in each target channel; rows sum to one.
    activation_cost
        The recipe's distance between the channels' activations, the mean over taps; None where there are none.
    weight_cost
        Squared distance between the channels' weights, with all other groups matched.
    correlation
        Correlation of the channels' activations.
    """

    name: str
    matrix: Tensor
    activation_cost: tuple[float, float] | None
    weight_cost: tuple[float, float]
    correlation: tuple[float, float] | None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.matrix)

    @property
    def moved(self) -> int:
        """Number of target channels whose largest share is not from the source channel of their number."""
        return int((self.matrix.argmax(1) != torch.arange(self.channels)).sum())


@dataclass(frozen=True, eq=False)
class MatchedTap:
    """Correlations (n,) of a group's channels at one module, before and after matching."""

    module: str
    group: str
    before: Tensor
    after: Tensor

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile after matching."""
        low, high = torch.quantile(self.after, torch.tensor([0.1, 0.9], dtype=self.after.dtype)).tolist()
        return low, high


@dataclass(frozen=True, eq=False)
class Matching:
    """The matching of one parent to the one whose channel order is kept."""

    groups: list[MatchedGroup]
    taps: list[MatchedTap]


def moved_channels(couplings: Sequence[Couplings], reference: int) -> tuple[int, int] | None:
    """Count the channels that the couplings of parents other than `reference` move, and all their channels.

    Returns None where a coupling maps channels linearly or to another number of them, so that none keeps its place.
    """
    moved = channels = 0
    for number, parent in enumerate(couplings):
        for coupling in parent.values() if number != reference else ():
            if coupling.maps is not None or coupling.sizes[0] != coupling.sizes[1]:
                return None
            source = coupling.permutation if coupling.permutation is not None else coupling.matrix.argmax(1)
            moved += int((source.cpu() != torch.arange(len(source))).sum())
            channels += len(source)
    return moved, channels


def describe_matching(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    settings: Align,
    calibration: Loader,
) -> dict[int, Matching]:
    """Describe the couplings of all parents to that of `recipe.kept`, by parent.

    Parameters
    ----------
    models
        Parents of one architecture.
    groups
        Their channel groups.
    couplings
        One mapping per parent, towards the channel order of parent `settings.kept`.
    settings
        Its distance (`cosine` for `best`) and taps are used.
    calibration
        Images; labels are not read.

    Returns
    -------
    dict
        Parent -> matching, groups and taps in the order of the network.
    """
    reference = settings.kept
    images, _ = next(iter(calibration))
    with torch.no_grad(), evaluating(models[reference], auxiliary=groups.auxiliary):
        order = modules_in_order(models[reference], lambda: models[reference](images[:1]))
    depths = {name: depth for depth, name in enumerate(order)}
    collector = PairwiseCollector(models, groups, calibration, settings.taps)
    return {
        parent: _against(models, groups, couplings[parent], settings, collector, (reference, parent), depths)
        for parent in range(len(models))
        if parent != reference
    }


def _against(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Couplings,
    settings: Align,
    collector: PairwiseCollector,
    pair: tuple[int, int],
    depths: dict[str, int],
) -> Matching:
    pairwise = collector.among(pair)
    distance = "cosine" if settings.compared.distance == "best" else settings.compared.distance
    target, source = (real_state(models[number]) for number in pair)
    aligned = apply_couplings(groups, couplings, source)
    weights = {name for name, _ in models[pair[0]].named_parameters(remove_duplicate=False)}
    matched, taps = [], []
    for root in find_orbits(groups):
        for orbit in root.walk():
            matrix = _matrix(root, orbit, couplings)
            costs = correlations = None
            if orbit.name in pairwise.uses:
                moments = pairwise.moments(orbit.name, *pair)
                costs = _before_and_after(activation_cost(moments, distance).cpu() / len(moments), matrix)
                each = [1.0 - activation_cost([tap], "pearson").cpu() for tap in moments]
                for module, correlation in zip(collector.modules[orbit.name], each, strict=True):
                    taps.append(MatchedTap(module, orbit.name, correlation.diag(), (matrix * correlation).sum(1)))
                correlations = _before_and_after(torch.stack(each).mean(0), matrix)
            parts = [
                part for part in orbit.parts if part.key in weights and target[part.key].shape == source[part.key].shape
            ]
            distances = [
                float(weight_cost(parts, target, state).diagonal(dim1=1, dim2=2).mean()) if parts else 0.0
                for state in (source, aligned)
            ]
            matched.append(MatchedGroup(orbit.name, matrix, costs, (distances[0], distances[1]), correlations))
    taps.sort(key=lambda tap: depths.get(tap.module, len(depths)))
    return Matching(matched, taps)


def _before_and_after(table: Tensor, matrix: Tensor) -> tuple[float, float]:
    return float(table.diag().mean()), float((matrix * table).sum(1).mean())


def _matrix(root: Orbit, orbit: Orbit, couplings: Couplings) -> Tensor:
    """Return the matching of an orbit's flat positions as a matrix, rows summing to one."""
    moved = flat_positions(root, couplings)
    if moved is not None:
        return torch.eye(len(moved[orbit.name]), dtype=torch.float64)[moved[orbit.name]]
    plans = [couplings.get(group.name, Coupling.identity(group.size)).matrix.cpu() for group in orbit.groups]
    matrix: Tensor = torch.block_diag(*plans)  # type: ignore[no-untyped-call]
    return matrix / matrix.sum(1, keepdim=True).clamp_min(1e-300)
