"""Lockstep runs of several networks through one program, layer by layer, on all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from depfuse.data.loader import Loader
from depfuse.distributed.device import free_memory_on
from depfuse.networks.forward import Example
from depfuse.refit.program.folded import Folded
from depfuse.refit.program.graph import Program, State, Values

HELD_SHARE = 0.25  # of the memory that is free where the images are: the walks of a refit are up to three at a time
HELD_MOST = 5 * 2**27  # bytes to hold on a CPU, or where a device does not say what is free


class Walk:
    """Lockstep run of networks of one program up to a node, on every batch; each layer is run once where memory allows.

    Between two calls the values that are still needed are held, for as many batches as fit `limit` bytes. The other
    batches are run from the images again at each call, so memory does not grow with their number. A batch that a call
    leaves out stays where it is until a later call takes it further.

    Parameters
    ----------
    program
        The operations.
    states
        The networks' weights by state-dict key; those of operations that have not been run yet may change.
    loader
        The images. All batches are truncated to the size of the smallest.
    limit
        Bytes of values to hold; when left out a share of the memory that is free, on a CPU `HELD_MOST` at most. No
        value depends on it.
    folded
        The program with every BatchNorm folded into its layer, if it is run so: nothing is then between the two.

    Attributes
    ----------
    maps
        Per network the weights and shifts of `folded`, none without it; those of operations that have not been run yet
        may change.
    """

    def __init__(
        self,
        program: Program,
        states: Sequence[State],
        loader: Loader,
        limit: int | None = None,
        folded: Folded | None = None,
    ) -> None:
        if limit is None:
            free = free_memory_on(loader.device)
            limit = HELD_MOST if free is None else int(HELD_SHARE * free)
            limit = limit if loader.device.type == "cuda" else min(limit, HELD_MOST)
        self.program, self.states, self.loader = program, states, loader
        self._position = {node: number for number, node in enumerate(program.nodes)}
        self._last = dict.fromkeys([*program.inputs, *program.nodes], -1)
        for node in program.nodes:
            for source in node.all_input_nodes:
                self._last[source] = self._position[node]
        self._last[program.output] = len(program.nodes)
        self._folded = folded
        self.maps: list[dict[str, Tensor]] = [{} if folded is None else folded.maps(state) for state in states]
        for unit in () if folded is None else folded.units:
            self._last[unit.node] = max(self._last[unit.node], self._position[unit.end])
        self._limit, self._bytes = limit, 0
        self._held: dict[int, _Held] = {}
        self.size = loader.count // len(loader)

    def until(
        self, ends: Sequence[int], needed: Sequence[fx.Node] = (), batches: int | None = None
    ) -> Iterator[list[Values]]:
        """Yield, for every batch, the networks' values once operations [0, end) of each have run.

        The values are those of the nodes in `needed` and of the inputs of later operations. A network never goes back:
        where one is further with a batch already, it stays there.

        Parameters
        ----------
        ends
            One position per network.
        batches
            How many batches are run, the first ones; all where None, or where there are no more.
        """
        kept_nodes = set(needed)
        for number in range(min(batches or len(self.loader), len(self.loader))):
            held = self._held.pop(number, None)
            if held is None:
                images = self._images(number)
                held = _Held([self.program.values_of(images) for _ in self.states], [0] * len(self.states))
            self._bytes -= held.size
            stops = [max(end, reached) for end, reached in zip(ends, held.reached, strict=True)]
            for network, (start, end) in enumerate(zip(held.reached, stops, strict=True)):
                self._run(network, held.values[network], start, end, kept_nodes)
            yield held.values
            for values, end in zip(held.values, stops, strict=True):
                self._drop(values, end, set())
            size = sum(tensor.untyped_storage().nbytes() for values in held.values for tensor in values.values())
            if self._bytes + size <= self._limit:
                self._held[number] = _Held(held.values, stops, size)
                self._bytes += size

    def _images(self, number: int) -> Example:
        """Prepare the images of a batch, truncated to the size of the smallest."""
        count, parts = self.loader.count, len(self.loader)
        first = number * (count // parts) + min(number, count % parts)  # as `tensor_split` divides them
        numbers = torch.arange(first, first + self.size)
        images: Example = self.loader.prepared(
            numbers, None, torch.Generator(), channels_last=self.loader.channels_last
        )
        return images

    def position(self, node: fx.Node) -> int:
        """Return the number of an operation in the program's order."""
        return self._position[node]

    def _run(self, network: int, values: Values, start: int, end: int, needed: set[fx.Node]) -> None:
        state, maps = self.states[network], self.maps[network]
        for number in range(start, end):
            node = self.program.nodes[number]
            if self._folded is None:
                values[node] = self.program.call(node, state, values)
            else:
                self._folded.call(node, maps, state, values)
            for source in node.all_input_nodes:
                if source in values and self._last[source] <= number and source not in needed:
                    del values[source]

    def _drop(self, values: Values, end: int, needed: set[fx.Node]) -> None:
        for node in [node for node in values if self._last[node] < end and node not in needed]:
            del values[node]


@dataclass
class _Held:
    """The values of a batch in every network, how many operations of each have run, and their bytes."""

    values: list[Values]
    reached: list[int]
    size: int = 0
