"""Pairwise moments of many parents, some at a time, and the similarity of a parent's channels to the others'.

Between N parents there are N (N - 1) / 2 matrices of products for each tap. Only those among a few parents are kept at
a time; all others count as one: the share-weighted mean of their standardised channels, in the universe's order. So
there are at most `MOST * (MOST + 1) / 2` matrices per tap, however many parents there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor, nn

from depfuse.align.costs import LOST, activation_cost
from depfuse.align.statistics.sums import (
    Centred,
    Moments,
    Origins,
    PairwiseSums,
    accumulate,
    check_finite,
    collect_sums,
    find_origins,
    finished,
)
from depfuse.align.statistics.taps import Key, TapChoice, TapReader, plan_readings
from depfuse.align.trees import Placement
from depfuse.data.loader import Loader
from depfuse.distributed.team import all_sum
from depfuse.groups import ChannelGroups

MOST = 6  # parents whose moments among one another are kept at a time
# Distance -> (share, whether means are taken off, exponent of the channel's size) of the features whose products are
# the similarity that `activation_cost` turns into a cost.
FEATURES: dict[str, tuple[tuple[float, bool, float], ...]] = {
    "cosine": ((1.0, False, 1.0),),
    "pearson": ((1.0, True, 1.0),),
    "cosine-pearson": ((0.5, False, 1.0), (0.5, True, 1.0)),
    "scaled": ((1.0, False, 0.75),),
    "euclidean": ((2.0, False, 0.0),),
}

Similarities = dict[str, Tensor]  # orbit name -> (n, n), channels of the universe or a parent by channels of a parent


class PairwiseCollector:
    """Collector of pairwise moments of many parents on the calibration images, in one pass each time.

    Parameters
    ----------
    models
        All parents.
    groups
        Their channel groups.
    loader
        The images; labels are not read.
    choice
        The side of the taps.

    Attributes
    ----------
    tapped
        Names of the orbits with taps.
    modules
        Orbit name -> the module at each of its taps.
    most_kept
        Largest number of matrices of products per reading held at a time.
    """

    def __init__(self, models: Sequence[nn.Module], groups: ChannelGroups, loader: Loader, choice: TapChoice) -> None:
        self.models, self.groups, self.loader = models, groups, loader
        self.plan = plan_readings(groups, choice)
        self.tapped = {name for _, uses in self.plan.values() for name, _ in uses}
        self.modules: dict[str, list[str]] = {}
        for (reading, _), (_, uses) in self.plan.items():
            for name, _ in uses:
                self.modules.setdefault(name, []).append(reading.module)
        self.most_kept = 0
        self._sizes: dict[Key, PairwiseSums] | None = None

    def among(self, members: Sequence[int]) -> PairwiseMoments:
        """Collect moments of some parents among one another, in one pass of these."""
        pairs = list(combinations(sorted(members), 2))
        sums = collect_sums(self.loader, self._reader(members), self._origins, pairs)
        for key, reading_sums in sums.items():
            self.most_kept = max(self.most_kept, len(reading_sums.products))
            check_finite(key, reading_sums.products.values())
        return PairwiseMoments(tuple(members), self._uses(sums), {})

    def among_and_others(
        self,
        members: Sequence[int],
        others: Mapping[int, Mapping[str, Tensor]],
        shares: Sequence[float],
        distance: str,
    ) -> PairwiseMoments:
        """Collect the same with the similarity to the others' mean, in one pass of all.

        Parameters
        ----------
        others
            Parent -> orbit name -> source of the universe's flat positions.
        shares
            One per parent.
        """
        if self._sizes is None:
            self._sizes = {key: PairwiseSums(Centred(self._origins[key])) for key in self.plan}
            for parent in range(len(self.models)):
                for key, alone in collect_sums(self.loader, self._reader([parent]), self._origins, ()).items():
                    sizes = self._sizes[key]
                    sizes.count = alone.count
                    sizes.sums |= alone.sums
                    sizes.squares |= alone.squares
        reader = self._reader([*members, *others])
        sums, mean = all_sum(
            _with_others, self.loader, reader, self._origins, members, others, shares, distance, self._sizes
        )
        self.most_kept = max(self.most_kept, *(len(each.products) + len(members) for each in sums.values()))
        return PairwiseMoments(tuple(members), self._uses(sums), {m: _on_host(values) for m, values in mean.items()})

    def covariances(self) -> dict[str, list[Tensor]]:
        """Collect covariances of the channels of all parents, within each and between any two, in one pass of all.

        Returns
        -------
        dict
            Orbit name -> (parents * n, parents * n) float64 on the CPU at each of its taps, one parent's channels after
            the other's; zero for channels that vary no more than rounding.
        """
        count, sums, products = all_sum(_joint_sums, self.loader, self._reader(range(len(self.models))), self._origins)
        by_orbit: dict[str, list[Tensor]] = {}
        for key, (_, uses) in self.plan.items():
            check_finite(key, [products[key]])
            mean = sums[key] / count[key]
            squares = products[key].diagonal() / count[key]
            varies = squares - mean.square() > LOST * squares
            covariance = (products[key] / count[key] - mean[:, None] * mean[None]).cpu()
            covariance *= (varies[:, None] & varies[None]).cpu()
            starts = torch.arange(len(self.models)) * (len(mean) // len(self.models))
            for name, channels in uses:
                numbers = (starts[:, None] + channels.cpu()).reshape(-1)
                by_orbit.setdefault(name, []).append(covariance[numbers][:, numbers])
        return by_orbit

    def _reader(self, parents: Sequence[int]) -> TapReader:
        models = {parent: self.models[parent] for parent in parents}
        return TapReader(models, dict.fromkeys(parents, self.plan), self.groups.auxiliary)

    @cached_property
    def _origins(self) -> Origins:
        return find_origins(self._reader(range(len(self.models))), self.loader)

    def _uses(self, sums: Mapping[Key, PairwiseSums]) -> dict[str, list[tuple[PairwiseSums, Tensor]]]:
        uses: dict[str, list[tuple[PairwiseSums, Tensor]]] = {}
        for key, (_, named) in self.plan.items():
            for name, channels in named:
                uses.setdefault(name, []).append((sums[key], channels))
        return uses


def _with_others(
    loader: Loader,
    reader: TapReader,
    origins: Origins,
    members: Sequence[int],
    others: Mapping[int, Mapping[str, Tensor]],
    shares: Sequence[float],
    distance: str,
    sizes: Mapping[Key, PairwiseSums],
) -> tuple[tuple[dict[Key, PairwiseSums], dict[int, Similarities]], list[Tensor]]:
    sums = {key: PairwiseSums(Centred(origins[key])) for key in reader.keys}
    plan = next(iter(reader.plans.values()))
    pairs = list(combinations(sorted(members), 2))
    mean: dict[int, Similarities] = {member: {} for member in members}
    for key, rows in reader.read(loader):
        sums[key].add({member: rows[member] for member in members}, pairs)
        for name, channels in plan[key][1]:
            for share, centred, exponent in FEATURES[distance]:
                total: Tensor | None = None
                for parent, placed in others.items():
                    order = channels[placed[name]]
                    part = shares[parent] * _feature(sizes[key], parent, rows[parent], order, centred, exponent)
                    total = part if total is None else total.add_(part)
                assert total is not None
                for member in members:
                    part = _feature(sizes[key], member, rows[member], channels, centred, exponent)
                    accumulate(mean[member], name, share * total.T @ part / float(sizes[key].count))
    return (sums, mean), [*finished(sums), *(tensor for values in mean.values() for tensor in values.values())]


def _feature(sums: PairwiseSums, parent: int, rows: Tensor, channels: Tensor, centred: bool, exponent: float) -> Tensor:
    """Scale channels (n_samples, n) so that their products are a similarity; silent ones are zero."""
    mean = sums.sums[parent][channels] / sums.count
    square = sums.squares[parent][channels] / sums.count
    shift = torch.zeros_like(mean)
    if centred:
        variance = square - mean.square()
        square, shift = torch.where(variance > LOST * square, variance, 0.0), mean
    typical = square.mean() if 0.0 < exponent < 1.0 else 1.0
    size = square.sqrt() ** exponent * typical ** (0.5 - 0.5 * exponent)
    factor = torch.where(square > 0, 1.0 / size.clamp_min(1e-300), 0.0 if exponent else 1.0)
    return (rows[:, channels] - shift.to(rows)) * factor.to(rows)


def _joint_sums(
    loader: Loader, reader: TapReader, origins: Origins
) -> tuple[tuple[dict[Key, Tensor], dict[Key, Tensor], dict[Key, Tensor]], list[Tensor]]:
    """Map reading -> samples, sums and products of all parents' channels, one parent's after the other's."""
    count: dict[Key, Tensor] = {}
    sums: dict[Key, Tensor] = {}
    products: dict[Key, Tensor] = {}
    centred = {
        key: Centred({0: torch.cat([of_parents[parent] for parent in reader.models])})
        for key, of_parents in origins.items()
    }
    for key, rows in reader.read(loader):
        joint = centred[key](0, torch.cat(list(rows.values()), 1))
        ones = joint.new_ones(len(joint))
        accumulate(count, key, ones.sum())
        accumulate(sums, key, joint.T @ ones)
        accumulate(products, key, joint.T @ joint)
    for key, channels in centred.items():
        totals = sums[key], sums[key]
        products[key] = channels.product_about_zero((0, 0), count[key], totals, products[key])
        sums[key] = channels.about_zero(0, count[key], sums[key], sums[key])[0]
    return (count, sums, products), [tensor for part in (count, sums, products) for tensor in part.values()]


def _on_host(similarities: Similarities) -> Similarities:
    return {name: value.cpu() for name, value in similarities.items()}


class PairwiseMoments:
    """Pairwise similarity of some parents' channels, to one another and to the mean of all others.

    Parameters
    ----------
    members
        The parents.
    uses
        Orbit name -> running sums and channels at each of its taps.
    others
        Parent -> similarity to the others' mean, in the universe's order; empty where there are no others.
    """

    def __init__(
        self,
        members: tuple[int, ...],
        uses: Mapping[str, list[tuple[PairwiseSums, Tensor]]],
        others: Mapping[int, Similarities],
    ) -> None:
        self.members, self.uses, self.others = members, uses, others
        self._pairs: dict[tuple[str, int, int], Tensor] = {}
        self._distance = ""

    def moments(self, name: str, target: int, source: int) -> list[Moments]:
        """Return the moments between two parents at each tap of an orbit."""
        return [sums.moments(target, source, channels) for sums, channels in self.uses[name]]

    def pair(self, name: str, target: int, source: int, distance: str) -> Tensor:
        """Compute the similarity (n, n) of two parents' channels, summed over taps, in float64 on the CPU."""
        if distance != self._distance:
            self._pairs, self._distance = {}, distance
        first, second = min(target, source), max(target, source)
        if (name, first, second) not in self._pairs:
            self._pairs[name, first, second] = -activation_cost(self.moments(name, first, second), distance).cpu()
        similarity = self._pairs[name, first, second]
        return similarity if target == first else similarity.T

    def similarity(
        self,
        name: str,
        parent: int,
        placed: Mapping[int, Placement],
        shares: Sequence[float],
        distance: str,
    ) -> Tensor:
        """Compute the similarity (n, n) of the universe's channels, averaged over other parents, to one parent's.

        Parameters
        ----------
        placed
            Other members -> source of the universe's channels; members that are not placed yet do not count.
        """
        size = len(self.uses[name][0][1])
        total = torch.zeros(size, size, dtype=torch.float64)
        if parent in self.others:
            total += self.others[parent][name]
        for other, place in placed.items():
            if other != parent:
                total += shares[other] * self.pair(name, other, parent, distance)[place[name]]
        return total
