"""Streaming first and second moments of the parents' channels at the taps.

Per tap, parent and channel: the sum and the sum of squares over images and positions; per pair (reference,
parent): the matrix of sums of products. Nothing of an activation outlives its batch, and all moments are
sums, so they add up over batches and over processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.errors import DataError
from depfuse.groups import ChannelGroup, ChannelGroups, Tap

TapChoice = Literal["after", "before", "both"]


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

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.target_sum + other.target_sum,
            self.target_square + other.target_square,
            self.source_sum + other.source_sum,
            self.source_square + other.source_square,
            self.product + other.product,
        )

    def select(self, index: Tensor) -> Moments:
        """Moments of a group whose channel c lies at positions index[c] (n_channels, repeats)."""
        repeats = index.shape[1]
        index = index.to(self.product.device)
        product = sum(self.product[index[:, r]][:, index[:, r]] for r in range(repeats))
        assert isinstance(product, Tensor)
        return Moments(
            self.count * repeats,
            self.target_sum[index].sum(1),
            self.target_square[index].sum(1),
            self.source_sum[index].sum(1),
            self.source_square[index].sum(1),
            product,
        )


def taps_of(group: ChannelGroup, choice: TapChoice) -> tuple[Tap, ...]:
    """The group's taps on the chosen side of the non-linearity, or all of them where that side has none."""
    chosen = tuple(tap for tap in group.taps if choice in ("both", tap.position))
    return chosen or group.taps


@dataclass(frozen=True)
class _Reading:
    """One tensor to read: some positions of one axis of a module's input or output."""

    module: str
    side: str
    axis: int

    def rows(self, tensor: Tensor, positions: Tensor | None) -> Tensor:
        """Samples by positions, (n_samples, n_positions), without a copy where the layout allows."""
        moved = tensor.detach().movedim(self.axis, -1)
        if positions is not None:
            moved = moved[..., positions.to(tensor.device)]
        return moved.reshape(-1, moved.shape[-1])


class _Sums:
    """Running sums of one reading for a reference and the other parents."""

    def __init__(self, parents: int) -> None:
        self.count = 0.0
        self.sums: list[Tensor | None] = [None] * parents
        self.squares: list[Tensor | None] = [None] * parents
        self.products: list[Tensor | None] = [None] * parents

    def add(self, rows: Sequence[Tensor]) -> None:
        """Add one batch: (n_samples, n_positions) per parent."""
        self.count += len(rows[0])
        for parent, values in enumerate(rows):
            _accumulate(self.sums, parent, values.sum(0, dtype=torch.float32))
            _accumulate(self.squares, parent, torch.linalg.vector_norm(values, dim=0).square())
            if parent:
                _accumulate(self.products, parent, rows[0].T @ values)

    def moments(self, parent: int) -> Moments:
        """Moments between the reference and one other parent."""
        found = (self.sums[0], self.squares[0], self.sums[parent], self.squares[parent], self.products[parent])
        assert all(tensor is not None for tensor in found)
        return Moments(self.count, *found)  # type: ignore[arg-type]


def _accumulate(sums: list[Tensor | None], parent: int, value: Tensor) -> None:
    # The sums of one batch fit float32; the sum over all batches does not.
    known = sums[parent]
    sums[parent] = value.double() if known is None else known.add_(value)


def collect_moments(
    models: Sequence[nn.Module], groups: ChannelGroups, loader: Loader, choice: TapChoice
) -> list[dict[str, Moments]]:
    """Moments of every free group that has a tap, between parent 0 and each other parent.

    One forward pass of every parent over the loader, in eval mode. The moments of a group's taps add up.

    Returns
    -------
    list of dict
        One dict (group name -> moments) per parent after the first.

    Raises
    ------
    DataError
        An activation is not finite, or the images do not fit the networks.
    """
    plan = _plan(groups, choice)
    sums = {key: _Sums(len(models)) for key in plan}
    with ExitStack() as stack, torch.inference_mode():
        held = [stack.enter_context(_captured(model, {reading for reading, _ in plan})) for model in models]
        for images, _ in loader:
            for model, captured in zip(models, held, strict=True):
                captured.clear()
                _forward(model, images)
            for (reading, number), (positions, _) in plan.items():
                rows = [reading.rows(captured[reading], positions) for captured in held]
                sums[reading, number].add(rows)
    return [
        {name: moments for name, moments in _by_group(plan, sums, parent).items()}
        for parent in range(1, len(models))
    ]


Uses = list[tuple[str, Tensor]]


def _plan(groups: ChannelGroups, choice: TapChoice) -> dict[tuple[_Reading, int], tuple[Tensor | None, Uses]]:
    """What to read: each tensor once where channels are single positions, else once for each group."""
    plan: dict[tuple[_Reading, int], tuple[Tensor | None, Uses]] = {}
    for group in groups.free:
        for tap in taps_of(group, choice):
            reading = _Reading(tap.module, tap.side, tap.axis)
            if tap.index.shape[1] == 1:
                plan.setdefault((reading, 0), (None, []))[1].append((group.name, tap.index))
            else:
                places = torch.arange(tap.index.numel()).reshape(tap.index.shape)
                number = 1 + sum(1 for known, _ in plan if known == reading)
                plan[reading, number] = (tap.index.reshape(-1), [(group.name, places)])
    return plan


def _by_group(
    plan: dict[tuple[_Reading, int], tuple[Tensor | None, Uses]], sums: dict[tuple[_Reading, int], _Sums], parent: int
) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for key, (_, uses) in plan.items():
        moments = sums[key].moments(parent)
        for name, index in uses:
            part = moments.select(index)
            if not bool(torch.isfinite(part.product).all()):
                raise DataError(
                    f"activations of {key[0].module or 'the network'} are not finite on the calibration images: "
                    "check the pre-processing (--mean, --std) and the parents' weights"
                )
            found[name] = found[name] + part if name in found else part
    return found


def _forward(model: nn.Module, images: Tensor) -> None:
    try:
        model(images)
    except RuntimeError as error:
        raise DataError(
            f"images of shape {tuple(images.shape[1:])} do not fit {type(model).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error


@contextmanager
def _captured(model: nn.Module, readings: set[_Reading]) -> Iterator[dict[_Reading, Tensor]]:
    """Run with the model in eval mode and its tapped tensors written to a dict at each forward pass."""
    modules = dict(model.named_modules())
    captured: dict[_Reading, Tensor] = {}
    modes = {module: module.training for module in model.modules()}
    handles = []
    for reading in readings:

        def keep(module: nn.Module, inputs: Any, result: Any = None, reading: _Reading = reading) -> None:
            tensor = result if reading.side == "output" else inputs[0]
            # An in-place activation would overwrite what a normalisation gave.
            captured[reading] = tensor.clone() if reading.side == "output" else tensor

        module = modules[reading.module]
        if reading.side == "output":
            handles.append(module.register_forward_hook(keep))
        else:
            handles.append(module.register_forward_pre_hook(keep))
    model.eval()
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
