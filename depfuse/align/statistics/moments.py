"""Streaming first and second moments of the parents' channels at the taps.

Per tap, parent and channel: the sum and the sum of squares over images and positions; per pair (reference,
parent): the matrix of sums of products. No activation outlives its batch, and all moments are
sums, so they add up over batches and over processes.
Within a batch they are float32 sums about an origin near the channel's mean: otherwise small variances
would be lost in rounding, and moments would depend on the division into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.data.inputs import count_samples, split_samples, take_samples
from depfuse.data.loader import Loader
from depfuse.distributed.team import all_sum
from depfuse.errors import DataError
from depfuse.groups import ChannelGroups, Tap
from depfuse.groups.channel_group import Position
from depfuse.groups.nesting import Orbit, find_orbits, without
from depfuse.networks.calling import in_layout, run_network
from depfuse.networks.layout import choose_layout
from depfuse.networks.running import evaluating

TapChoice = Literal["after", "before", "both"]
# Images per forward pass on the CPU. The tapped tensors of a pass are held together: in small parts they stay in the
# cache, and below the size from which the C library's allocator asks the system for fresh pages each time.
AT_ONCE = 50


@dataclass
class Moments:
    """Sums over `count` samples for n target channels and m source channels, in float64.

    Attributes
    ----------
    count
        Samples: images times positions.
    target_sum, target_square
        (n,) sum and sum of squares of each target channel.
    source_sum, source_square
        (m,) the same for the source.
    product
        (n, m) sum of target times source.
    """

    count: float
    target_sum: Tensor
    target_square: Tensor
    source_sum: Tensor
    source_square: Tensor
    product: Tensor

    def select(self, target: Tensor, source: Tensor) -> Moments:
        """Select moments between some target channels (k,) and some source channels (l,)."""
        target, source = target.to(self.product.device), source.to(self.product.device)
        return Moments(
            self.count,
            self.target_sum[target],
            self.target_square[target],
            self.source_sum[source],
            self.source_square[source],
            self.product[target][:, source],
        )


@dataclass(frozen=True)
class _Reading:
    """A tensor to read: an axis of a module's input or output, or a linear map of it."""

    module: str
    side: str
    axis: int
    through: tuple[str, str | None] | None

    def taken(self, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor to read, channels last where it is a linear map of the module's."""
        if self.through is None:
            return tensor.movedim(self.axis, -1)
        weight, bias = (None if key is None else state[key] for key in self.through)
        assert weight is not None
        return F.linear(tensor.movedim(self.axis, -1), weight, bias)

    def rows(self, tensor: Tensor, index: Tensor | None) -> Tensor:
        """Reshape to samples by channels, (n_samples, n_channels); without a copy where the layout allows.

        Without `index` every position of the axis is a channel; with it (n_channels, repeats), each repeat is a
        sample of its own.
        """
        moved = tensor.detach()
        if index is not None:
            moved = moved[..., index.to(tensor.device)].transpose(-1, -2)
        return moved.reshape(-1, moved.shape[-1])


@dataclass(frozen=True)
class _Watched:
    """A reading of an orbit's channels: `index` is (n_groups * n_channels, repeats)."""

    reading: _Reading
    position: Position
    index: Tensor


def _watched(orbit: Orbit) -> list[_Watched]:
    """List the taps that all groups of an orbit have; for a block group, without positions of inner groups."""
    readings = []
    tables = [{_place(tap): tap for tap in group.taps} for group in orbit.groups]
    inner = [watched for below in orbit.walk() if below is not orbit for watched in _watched(below)]
    for place in tables[0]:
        if not all(place in table for table in tables):
            continue
        reading, position = place
        index = torch.cat([table[place].index for table in tables])
        held = [watched.index.reshape(-1) for watched in inner if watched.reading == reading]
        if held:
            index = without(index, torch.cat(held))
        if index.shape[1]:
            readings.append(_Watched(reading, position, index))
    return readings


def _place(tap: Tap) -> tuple[_Reading, Position]:
    return _Reading(tap.module, tap.side, tap.axis, tap.through), tap.position


def _chosen(watched: Sequence[_Watched], choice: TapChoice) -> Sequence[_Watched]:
    """Select the taps on the chosen side of the non-linearity, or all of them where that side has none."""
    return [place for place in watched if choice in ("both", place.position)] or watched


Uses = list[tuple[str, Tensor]]
Key = tuple[_Reading, int]
Plan = dict[Key, tuple[Tensor | None, Uses]]


class Centred:
    """Channels minus their means in the first images, per parent.

    Sums of float32 products about zero lose the differences of channels that hardly vary. About an origin near the
    mean they do not; `about_zero` and `product_about_zero` move them back in float64. The origins are the same in all
    processes, or these would round otherwise than one does alone.

    Parameters
    ----------
    origins
        (n,) float32 per parent.
    """

    def __init__(self, origins: Mapping[int, Tensor]) -> None:
        self.origins = origins

    def __call__(self, parent: int, rows: Tensor) -> Tensor:
        """Subtract a parent's origin from its rows (n_samples, n)."""
        return rows - self.origins[parent]

    def about_zero(self, parent: int, count: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Move the sum and sum of squares of a parent's channels from its origin to zero."""
        origin = self.origins[parent].double()
        return total + count * origin, square + 2.0 * origin * total + count * origin.square()

    def product_about_zero(
        self, parents: tuple[int, int], count: Tensor, totals: tuple[Tensor, Tensor], product: Tensor
    ) -> Tensor:
        """Move the sum of products (n, m) of two parents' channels from their origins to zero."""
        first, second = (self.origins[parent].double() for parent in parents)
        return (
            product
            + torch.outer(first, totals[1])
            + torch.outer(totals[0], second)
            + float(count) * torch.outer(first, second)
        )


def origin_of(rows: Tensor) -> Tensor:
    """Compute the mean (n,) of rows (n_samples, n); zero where it is not finite."""
    # Sums over the first axis as matrix-vector products: 5 to 50 times faster on a CPU than `sum(0)`.
    mean = rows.T @ rows.new_ones(len(rows)) / max(len(rows), 1)
    return torch.where(mean.isfinite(), mean, 0.0)


class _Sums:
    """Running sums of one reading for a reference and the other parents, about each channel's origin."""

    def __init__(self, origins: Mapping[int, Tensor]) -> None:
        parents = len(origins)
        self.count = torch.zeros((), dtype=torch.float64)
        self.sums: list[Tensor | None] = [None] * parents
        self.squares: list[Tensor | None] = [None] * parents
        self.products: list[Tensor | None] = [None] * parents
        self._centred = Centred(origins)

    def add(self, rows: Sequence[Tensor]) -> None:
        """Add one batch: (n_samples, n_positions) per parent."""
        self.count += len(rows[0])
        ones = rows[0].new_ones(len(rows[0]))
        rows = [self._centred(parent, values) for parent, values in enumerate(rows)]
        for parent, values in enumerate(rows):
            _accumulate(self.sums, parent, values.T @ ones)
            _accumulate(self.squares, parent, values.square().T @ ones)
            if parent:
                _accumulate(self.products, parent, rows[0].T @ values)

    def finish(self) -> None:
        """Move all sums to the origin zero, where those of several processes add up."""
        for parent in range(len(self.sums) - 1, -1, -1):
            total, square, product = self.sums[parent], self.squares[parent], self.products[parent]
            assert total is not None
            assert square is not None
            if product is not None:
                assert self.sums[0] is not None
                totals = self.sums[0], total
                self.products[parent] = self._centred.product_about_zero((0, parent), self.count, totals, product)
            self.sums[parent], self.squares[parent] = self._centred.about_zero(parent, self.count, total, square)

    def tensors(self) -> list[Tensor]:
        """List all sums."""
        return [
            self.count,
            *(t for by_pair in (self.sums, self.squares, self.products) for t in by_pair if t is not None),
        ]

    def moments(self, parent: int) -> Moments:
        """Return the moments between the reference and one other parent."""
        totals = (
            self.sums[0],
            self.squares[0],
            self.sums[parent],
            self.squares[parent],
            self.products[parent],
        )
        assert all(tensor is not None for tensor in totals)
        return Moments(float(self.count), *totals)  # type: ignore[arg-type]


def _accumulate(sums: list[Tensor | None], parent: int, value: Tensor) -> None:
    # The sums of one batch fit float32; the sum over all batches does not.
    total = sums[parent]
    sums[parent] = value.double() if total is None else total.add_(value)


def collect_moments(
    models: Sequence[nn.Module],
    groups: ChannelGroups | Sequence[ChannelGroups],
    loader: Loader,
    choice: TapChoice,
) -> list[dict[str, list[Moments]]]:
    """Collect moments of every orbit of free groups that has a tap, between parent 0 and each other parent.

    One forward pass of every parent over the loader, in eval mode.

    Parameters
    ----------
    groups
        Of all parents, or where their widths differ, those of each one, paired by name (`pair_groups`).
    loader
        The images; labels are not read.
    choice
        The side of the taps.

    Returns
    -------
    list of dict
        One dict (orbit name -> moments at each of its taps) per parent after the first. A group that lies in no block
        is an orbit by its own name. The moments of inner groups are those of all channels (n_groups * n_channels,) of
        their orbit among one another; those of a block group are of positions in no inner group.

    Raises
    ------
    DataError
        An activation is not finite, or the images do not fit the networks.
    """
    of_parents = [groups] * len(models) if isinstance(groups, ChannelGroups) else groups
    plans = [_plan(parent_groups, choice) for parent_groups in of_parents]
    first = _rows(loader.first(AT_ONCE), models, plans, of_parents[0].auxiliary)
    origins = {key: {parent: origin_of(values) for parent, values in enumerate(rows)} for key, rows in first}
    sums = all_sum(_running_sums, loader, list(models), plans, of_parents[0].auxiliary, origins)
    return [_by_orbit(plans[0], plans[parent], sums, parent) for parent in range(1, len(models))]


def _running_sums(
    loader: Loader,
    models: Sequence[nn.Module],
    plans: Sequence[Plan],
    auxiliary: Iterable[str],
    origins: Mapping[Key, Mapping[int, Tensor]],
) -> tuple[dict[Key, _Sums], list[Tensor]]:
    sums = {key: _Sums(reading_origins) for key, reading_origins in origins.items()}
    for key, rows in _rows(loader, models, plans, auxiliary):
        sums[key].add(rows)
    for reading_sums in sums.values():
        reading_sums.finish()
    return sums, [tensor for reading_sums in sums.values() for tensor in reading_sums.tensors()]


def _rows(
    loader: Loader, models: Sequence[nn.Module], plans: Sequence[Plan], auxiliary: Iterable[str]
) -> Iterator[tuple[Key, list[Tensor]]]:
    """Yield each reading of each batch: (n_samples, n_positions) per parent."""
    read = [key for key in plans[0] if all(key in plan for plan in plans)]
    layouts: list[torch.memory_format] = []
    with ExitStack() as stack, torch.inference_mode(), evaluating(*models, auxiliary=auxiliary):
        held = [stack.enter_context(_captured(model, {reading for reading, _ in read})) for model in models]
        for images, _ in loader:
            layouts = layouts or [choose_layout(model, take_samples(images, slice(0, 1)))[0] for model in models]
            for part in split_samples(images, AT_ONCE if loader.device.type == "cpu" else count_samples(images)):
                for model, layout in zip(models, layouts, strict=True):
                    run_network(model, in_layout(part, layout))
                for key in read:
                    reading, _ = key
                    yield (
                        key,
                        [
                            reading.rows(captured[reading], plan[key][0])
                            for captured, plan in zip(held, plans, strict=True)
                        ],
                    )


def _plan(groups: ChannelGroups, choice: TapChoice) -> Plan:
    """Plan the readings: each tensor once where channels are single positions, else once for each orbit."""
    plan: Plan = {}
    for orbit in (orbit for root in find_orbits(groups) for orbit in root.walk()):
        for watched in _chosen(_watched(orbit), choice):
            if watched.index.shape[1] == 1:
                plan.setdefault((watched.reading, 0), (None, []))[1].append((orbit.name, watched.index[:, 0]))
            else:
                number = 1 + sum(1 for reading, _ in plan if reading == watched.reading)
                plan[watched.reading, number] = (watched.index, [(orbit.name, torch.arange(len(watched.index)))])
    return plan


def _by_orbit(
    target: Plan,
    source: Plan,
    sums: dict[Key, _Sums],
    parent: int,
) -> dict[str, list[Moments]]:
    by_orbit: dict[str, list[Moments]] = {}
    for key, running in sums.items():
        moments = running.moments(parent)
        source_index = dict(source[key][1])
        for name, channels in target[key][1]:
            if name not in source_index:
                continue
            part = moments.select(channels, source_index[name])
            if not bool(torch.isfinite(part.product).all()):
                raise DataError(
                    f"activations of {key[0].module or 'the network'} are not finite on the calibration images: "
                    "check the pre-processing (`mean`, `std`) and the parents' weights"
                )
            by_orbit.setdefault(name, []).append(part)
    return by_orbit


@contextmanager
def _captured(model: nn.Module, readings: set[_Reading]) -> Iterator[dict[_Reading, Tensor]]:
    """Capture the model's tapped tensors in a dict at each forward pass."""
    modules, state = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    captured: dict[_Reading, Tensor] = {}
    handles = []
    for reading in readings:

        def keep(module: nn.Module, inputs: Any, result: Any = None, reading: _Reading = reading) -> None:
            tensor = result if reading.side == "output" else inputs[0]
            # An in-place activation would overwrite what a normalisation gave.
            captured[reading] = reading.taken(tensor.clone() if reading.side == "output" else tensor, state)

        module = modules[reading.module]
        if reading.side == "output":
            handles.append(module.register_forward_hook(keep))
        else:
            handles.append(module.register_forward_pre_hook(keep))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
