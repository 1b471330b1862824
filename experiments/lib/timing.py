"""Seconds by step, peak memory, and the bare forward passes that both are compared with."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from depfuse.data import Loader
from depfuse.networks.memory_format import choose_layout
from depfuse.networks.stopwatch import Stopwatch


class Watch:
    """Seconds by step; what a device still has to do counts for the step that asked for it.

    Parameters
    ----------
    device
        Waited for at the ends of a step.
    clock
        The system's where None; `time.process_time` for seconds of the processor.
    """

    def __init__(self, device: torch.device | None = None, clock: Callable[[], float] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._watch = Stopwatch(device or torch.device("cpu"), clock)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        started = self._watch.now()
        yield
        self.seconds[name] = self._watch.now() - started


def seconds_of(work: Callable[[], object]) -> float:
    """Time a call by the clock on the wall."""
    watch = Watch()
    with watch.step("call"):
        work()
    return watch.seconds["call"]


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def layouts_of(networks: Sequence[nn.Module], loader: Loader) -> list[torch.memory_format]:
    """Choose the memory layout that suits each network."""
    return [choose_layout(network, loader.example())[0] for network in networks]


def pass_forward(
    networks: Sequence[nn.Module],
    loader: Loader,
    layouts: Sequence[torch.memory_format] | None = None,
    at_once: int | None = None,
) -> None:
    """Run the bare forward passes of networks on images, `at_once` images at a time; layouts are chosen if left out."""
    with torch.inference_mode():
        layouts = layouts_of(networks, loader) if layouts is None else layouts
        for images, _ in loader:
            for part in torch.split(images, at_once or len(images)):
                for network, layout in zip(networks, layouts, strict=True):
                    network(part.contiguous(memory_format=layout))
