"""Readings of the parents' activations at the taps of channel groups, batch by batch.

No activation outlives its batch. A tensor that several groups share is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.data.inputs import count_samples, split_samples, take_samples
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups, Tap
from depfuse.groups.nesting import Orbit, find_orbits, without
from depfuse.groups.slots import Position
from depfuse.networks.forward import in_layout, run_network
from depfuse.networks.memory_format import choose_layout
from depfuse.networks.running import evaluating, removing
from depfuse.progress import work
from depfuse.tasks.outputs import check_numbers

TapChoice = Literal["after", "before", "both"]
# Images per forward pass on the CPU. The tapped tensors of a pass are in memory at once: in small parts they stay in
# the cache, and below the size from which the C library's allocator asks the system for fresh pages each time.
AT_ONCE = 50


@dataclass(frozen=True)
class Reading:
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

    reading: Reading
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


def _place(tap: Tap) -> tuple[Reading, Position]:
    return Reading(tap.module, tap.side, tap.axis, tap.through), tap.position


def _chosen(watched: Sequence[_Watched], choice: TapChoice) -> Sequence[_Watched]:
    """Select the taps on the chosen side of the non-linearity, or all of them where that side has none."""
    return [place for place in watched if choice in ("both", place.position)] or watched


Uses = list[tuple[str, Tensor]]
Key = tuple[Reading, int]
Plan = dict[Key, tuple[Tensor | None, Uses]]


@dataclass(frozen=True)
class TapReader:
    """Some parents by number, with the readings of each.

    Attributes
    ----------
    models, plans
        Parent -> network, and its readings; those that all parents have are read.
    auxiliary
        Names of the auxiliary heads, which run too.
    """

    models: Mapping[int, nn.Module]
    plans: Mapping[int, Plan]
    auxiliary: Sequence[str]

    @property
    def keys(self) -> list[Key]:
        """Readings that all parents have, in the order of the network."""
        first, *others = self.plans.values()
        return [key for key in first if all(key in plan for plan in others)]

    def read(self, loader: Loader) -> Iterator[tuple[Key, dict[int, Tensor]]]:
        """Yield each reading of each batch: parent -> (n_samples, n_positions)."""
        models = list(self.models.values())
        keys = self.keys
        layouts: list[torch.memory_format] = []
        seen = 0
        with ExitStack() as stack, torch.inference_mode(), evaluating(*models, auxiliary=self.auxiliary):
            readings = {reading for reading, _ in keys}
            captured = {
                parent: stack.enter_context(_captured(model, readings)) for parent, model in self.models.items()
            }
            for images, _ in work().within(loader, "collecting activations"):
                layouts = layouts or [choose_layout(model, take_samples(images, slice(0, 1)))[0] for model in models]
                for part in split_samples(images, AT_ONCE if loader.device.type == "cpu" else count_samples(images)):
                    for parent, model, layout in zip(self.models, models, layouts, strict=True):
                        check_numbers(run_network(model, in_layout(part, layout)), parent, seen)
                    seen += count_samples(part)
                    for key in keys:
                        reading, _ = key
                        yield (
                            key,
                            {
                                parent: reading.rows(tensors[reading], self.plans[parent][key][0])
                                for parent, tensors in captured.items()
                            },
                        )


def plan_readings(groups: ChannelGroups, choice: TapChoice) -> Plan:
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


@contextmanager
def _captured(model: nn.Module, readings: set[Reading]) -> Iterator[dict[Reading, Tensor]]:
    """Capture the model's tapped tensors in a dict at each forward pass."""
    modules, state = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    captured: dict[Reading, Tensor] = {}
    handles = []
    for reading in readings:

        def keep(module: nn.Module, inputs: Any, result: Any = None, reading: Reading = reading) -> None:
            tensor = result if reading.side == "output" else inputs[0]
            # An in-place activation would overwrite what a normalisation gave.
            captured[reading] = reading.taken(tensor.clone() if reading.side == "output" else tensor, state)

        module = modules[reading.module]
        if reading.side == "output":
            handles.append(module.register_forward_hook(keep))
        else:
            handles.append(module.register_forward_pre_hook(keep))
    with removing(handles):
        yield captured
