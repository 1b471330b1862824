"""Pairwise moments of many parents, some at a time, and the similarity of a parent's channels to the others'.

Between N parents there are N (N - 1) / 2 matrices of products for each tap. Only those among a few parents are kept at
a time; all others count as one: the share-weighted mean of their standardised channels, in the universe's order. So
there are at most `MOST * (MOST + 1) / 2` matrices per tap, however many parents there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.align.costs import LOST, activation_cost
from depfuse.align.statistics.moments import (
    AT_ONCE,
    Centred,
    Key,
    Moments,
    Plan,
    TapChoice,
    _captured,
    _plan,
    origin_of,
)
from depfuse.align.trees import Placement
from depfuse.data.inputs import count_samples, split_samples, take_samples
from depfuse.data.loader import Loader
from depfuse.distributed.team import all_sum
from depfuse.errors import DataError
from depfuse.groups import ChannelGroups
from depfuse.networks.calling import in_layout, run_network
from depfuse.networks.layout import choose_layout
from depfuse.networks.running import evaluating

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


@dataclass
class PairwiseSums:
    """Running sums of one reading: channels and squares per parent, products per pair.

    Attributes
    ----------
    centred
        Subtracts each parent's origins.
    count
        Samples so far.
    sums, squares
        (n,) per parent, in float64.
    products
        (j, i) with j before i -> (n, n) sum of parent j's channels times parent i's.
    """

    centred: Centred
    count: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    sums: dict[int, Tensor] = field(default_factory=dict)
    squares: dict[int, Tensor] = field(default_factory=dict)
    products: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, rows: Mapping[int, Tensor], pairs: bool) -> None:
        """Add one batch: parent -> (n_samples, n)."""
        self.count += len(next(iter(rows.values())))
        rows = {i: self.centred(i, values) for i, values in rows.items()}
        for i, values in rows.items():
            ones = values.new_ones(len(values))
            _accumulate(self.sums, i, values.T @ ones)
            _accumulate(self.squares, i, values.square().T @ ones)
            for j in rows if pairs else ():
                if j < i:
                    _accumulate(self.products, (j, i), rows[j].T @ values)

    def finish(self) -> None:
        """Move all sums from each channel's origin to the origin zero."""
        for (j, i), product in self.products.items():
            totals = self.sums[j], self.sums[i]
            self.products[j, i] = self.centred.product_about_zero((j, i), self.count, totals, product)
        for i in self.sums:
            moved = self.centred.about_zero(i, self.count, self.sums[i], self.squares[i])
            self.sums[i], self.squares[i] = moved

    def tensors(self) -> list[Tensor]:
        """List all sums."""
        return [self.count, *self.sums.values(), *self.squares.values(), *self.products.values()]

    def moments(self, target: int, source: int, channels: Tensor) -> Moments:
        """Return the moments between some channels of two parents."""
        product = self.products[min(target, source), max(target, source)]
        product = product if target < source else product.T
        channels = channels.to(product.device)
        return Moments(
            float(self.count),
            self.sums[target][channels],
            self.squares[target][channels],
            self.sums[source][channels],
            self.squares[source][channels],
            product[channels][:, channels],
        )

    def feature(self, parent: int, rows: Tensor, channels: Tensor, centred: bool, exponent: float) -> Tensor:
        """Scale channels (n_samples, n) so that their products are a similarity; silent ones are zero."""
        mean = self.sums[parent][channels] / self.count
        square = self.squares[parent][channels] / self.count
        shift = torch.zeros_like(mean)
        if centred:
            variance = square - mean.square()
            square, shift = torch.where(variance > LOST * square, variance, 0.0), mean
        typical = square.mean() if 0.0 < exponent < 1.0 else 1.0
        size = square.sqrt() ** exponent * typical ** (0.5 - 0.5 * exponent)
        factor = torch.where(square > 0, 1.0 / size.clamp_min(1e-300), 0.0 if exponent else 1.0)
        return (rows[:, channels] - shift.to(rows)) * factor.to(rows)


def _accumulate(sums: dict, key: object, value: Tensor) -> None:  # type: ignore[type-arg]
    # The sums of one batch fit float32; the sum over all batches does not.
    total = sums.get(key)
    sums[key] = value.double() if total is None else total.add_(value)


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
        self.plan = _plan(groups, choice)
        self.tapped = {name for _, uses in self.plan.values() for name, _ in uses}
        self.modules: dict[str, list[str]] = {}
        for (reading, _), (_, uses) in self.plan.items():
            for name, _ in uses:
                self.modules.setdefault(name, []).append(reading.module)
        self.most_kept = 0
        self._sizes: dict[Key, PairwiseSums] | None = None

    def among(self, members: Sequence[int]) -> PairwiseMoments:
        """Collect moments of some parents among one another, in one pass of these."""
        sums = all_sum(_sums, self.loader, self._reader(members), True)
        for key, reading_sums in sums.items():
            self.most_kept = max(self.most_kept, len(reading_sums.products))
            _check_finite(key, reading_sums.products.values())
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
                for key, alone in all_sum(_sums, self.loader, self._reader([parent]), False).items():
                    sizes = self._sizes[key]
                    sizes.count = alone.count
                    sizes.sums |= alone.sums
                    sizes.squares |= alone.squares
        reader = self._reader([*members, *others])
        sums, mean = all_sum(_with_others, self.loader, reader, members, others, shares, distance, self._sizes)
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
        count, sums, products = all_sum(_joint_sums, self.loader, self._reader(range(len(self.models))))
        by_orbit: dict[str, list[Tensor]] = {}
        for key, (_, uses) in self.plan.items():
            _check_finite(key, [products[key]])
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

    def _reader(self, parents: Sequence[int]) -> _Reader:
        models = {parent: self.models[parent] for parent in parents}
        return _Reader(models, self.plan, self.groups.auxiliary, self._origins)

    @cached_property
    def _origins(self) -> dict[Key, dict[int, Tensor]]:
        """Mean of every parent's channels over the first images, for each reading."""
        reader = _Reader(dict(enumerate(self.models)), self.plan, self.groups.auxiliary, {})
        first = reader.read(self.loader.first(AT_ONCE))
        return {key: {parent: origin_of(values) for parent, values in rows.items()} for key, rows in first}

    def _uses(self, sums: Mapping[Key, PairwiseSums]) -> dict[str, list[tuple[PairwiseSums, Tensor]]]:
        uses: dict[str, list[tuple[PairwiseSums, Tensor]]] = {}
        for key, (_, named) in self.plan.items():
            for name, channels in named:
                uses.setdefault(name, []).append((sums[key], channels))
        return uses


@dataclass(frozen=True)
class _Reader:
    """Some parents by number, with their taps."""

    models: Mapping[int, nn.Module]
    plan: Plan
    auxiliary: Sequence[str]
    origins: Mapping[Key, Mapping[int, Tensor]]

    def read(self, loader: Loader) -> Iterator[tuple[Key, dict[int, Tensor]]]:
        """Yield each reading of each batch: parent -> (n_samples, n_positions)."""
        models = list(self.models.values())
        layouts: list[torch.memory_format] = []
        readings = {reading for reading, _ in self.plan}
        with ExitStack() as stack, torch.inference_mode(), evaluating(*models, auxiliary=self.auxiliary):
            held = [stack.enter_context(_captured(model, readings)) for model in models]
            for images, _ in loader:
                layouts = layouts or [choose_layout(model, take_samples(images, slice(0, 1)))[0] for model in models]
                for part in split_samples(images, AT_ONCE if loader.device.type == "cpu" else count_samples(images)):
                    for model, layout in zip(models, layouts, strict=True):
                        run_network(model, in_layout(part, layout))
                    for key, (index, _) in self.plan.items():
                        yield key, {p: key[0].rows(c[key[0]], index) for p, c in zip(self.models, held, strict=True)}


def _sums(loader: Loader, reader: _Reader, pairs: bool) -> tuple[dict[Key, PairwiseSums], list[Tensor]]:
    sums = {key: PairwiseSums(Centred(reader.origins[key])) for key in reader.plan}
    for key, rows in reader.read(loader):
        sums[key].add(rows, pairs)
    for reading_sums in sums.values():
        reading_sums.finish()
    return sums, [tensor for reading_sums in sums.values() for tensor in reading_sums.tensors()]


def _with_others(
    loader: Loader,
    reader: _Reader,
    members: Sequence[int],
    others: Mapping[int, Mapping[str, Tensor]],
    shares: Sequence[float],
    distance: str,
    sizes: Mapping[Key, PairwiseSums],
) -> tuple[tuple[dict[Key, PairwiseSums], dict[int, Similarities]], list[Tensor]]:
    sums = {key: PairwiseSums(Centred(reader.origins[key])) for key in reader.plan}
    mean: dict[int, Similarities] = {member: {} for member in members}
    for key, rows in reader.read(loader):
        sums[key].add({member: rows[member] for member in members}, pairs=True)
        for name, channels in reader.plan[key][1]:
            for share, centred, exponent in FEATURES[distance]:
                total: Tensor | None = None
                for parent, placed in others.items():
                    order = channels[placed[name]]
                    part = shares[parent] * sizes[key].feature(parent, rows[parent], order, centred, exponent)
                    total = part if total is None else total.add_(part)
                assert total is not None
                for member in members:
                    part = sizes[key].feature(member, rows[member], channels, centred, exponent)
                    _accumulate(mean[member], name, share * total.T @ part / float(sizes[key].count))
    for reading_sums in sums.values():
        reading_sums.finish()
    added = [tensor for reading_sums in sums.values() for tensor in reading_sums.tensors()]
    return (sums, mean), [*added, *(tensor for values in mean.values() for tensor in values.values())]


def _joint_sums(
    loader: Loader, reader: _Reader
) -> tuple[tuple[dict[Key, Tensor], dict[Key, Tensor], dict[Key, Tensor]], list[Tensor]]:
    """Map reading -> samples, sums and products of all parents' channels, one parent's after the other's."""
    count: dict[Key, Tensor] = {}
    sums: dict[Key, Tensor] = {}
    products: dict[Key, Tensor] = {}
    centred = {
        key: Centred({0: torch.cat([origins[parent] for parent in reader.models])})
        for key, origins in reader.origins.items()
    }
    for key, rows in reader.read(loader):
        joint = centred[key](0, torch.cat(list(rows.values()), 1))
        ones = joint.new_ones(len(joint))
        _accumulate(count, key, ones.sum())
        _accumulate(sums, key, joint.T @ ones)
        _accumulate(products, key, joint.T @ joint)
    for key, channels in centred.items():
        totals = sums[key], sums[key]
        products[key] = channels.product_about_zero((0, 0), count[key], totals, products[key])
        sums[key] = channels.about_zero(0, count[key], sums[key], sums[key])[0]
    return (count, sums, products), [tensor for part in (count, sums, products) for tensor in part.values()]


def _check_finite(key: Key, products: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(product).all()) for product in products):
        raise DataError(
            f"activations of {key[0].module or 'the network'} are not finite on the calibration images: "
            "check the pre-processing (`mean`, `std`) and the parents' weights"
        )


def _on_host(found: Similarities) -> Similarities:
    return {name: value.cpu() for name, value in found.items()}


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
