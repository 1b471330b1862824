"""Lockstep runs of several networks through one program, layer by layer, on all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, fx

from depfuse.data.inputs import take_samples
from depfuse.data.loader import Loader
from depfuse.distributed.device import free_memory_on
from depfuse.refit.program.graph import Program, State, Values

HELD_SHARE = 0.25  # of the memory that is free where the images are: the walks of a refit are up to three at a time
HELD_UNKNOWN = 2**30  # bytes to hold where a device does not say what is free


class Walk:
    """Lockstep run of networks of one program up to a node, on every batch; each layer is run once where memory allows.

    Between two calls the values that are still needed are held, for as many batches as fit `limit` bytes. The other
    batches are run from the images again at each call, so memory does not grow with their number.

    Parameters
    ----------
    program
        The operations.
    states
        The networks' weights by state-dict key; those of operations that have not been run yet may change.
    loader
        The images. All batches are truncated to the size of the smallest.
    limit
        Bytes of values to hold; a share of the memory that is free when left out.
    """

    def __init__(self, program: Program, states: Sequence[State], loader: Loader, limit: int | None = None) -> None:
        if limit is None:
            free = free_memory_on(loader.device)
            limit = HELD_UNKNOWN if free is None else int(HELD_SHARE * free)
        self.program, self.states, self.loader = program, states, loader
        self._position = {node: number for number, node in enumerate(program.nodes)}
        self._last = dict.fromkeys([*program.inputs, *program.nodes], -1)
        for node in program.nodes:
            for source in node.all_input_nodes:
                self._last[source] = self._position[node]
        self._last[program.output] = len(program.nodes)
        batches = max(1, int(limit / max(1, self._largest() * len(states))))
        self._held: list[list[Values] | None] = [[] if n < batches else None for n in range(len(loader))]
        self._reached = [0] * len(states)
        self.size = loader.count // len(loader)

    def until(self, ends: Sequence[int], needed: Sequence[fx.Node] = ()) -> Iterator[list[Values]]:
        """Yield, for every batch, the networks' values once operations [0, end) of each have run.

        The values are those of the nodes in `needed` and of the inputs of later operations. A network never goes back:
        one that is further already stays there.

        Parameters
        ----------
        ends
            One position per network.
        """
        kept_nodes = set(needed)
        ends = [max(end, reached) for end, reached in zip(ends, self._reached, strict=True)]
        for number, (images, _) in enumerate(self.loader):
            held = self._held[number]
            values = held
            if not values:
                values = [self.program.values_of(take_samples(images, slice(0, self.size))) for _ in self.states]
            starts = self._reached if held else [0] * len(self.states)
            for state, network_values, start, end in zip(self.states, values, starts, ends, strict=True):
                self._run(state, network_values, start, end, kept_nodes)
            yield values
            if held is not None:
                for network_values, end in zip(values, ends, strict=True):
                    self._drop(network_values, end, set())
                self._held[number] = values
        self._reached = ends

    def position(self, node: fx.Node) -> int:
        """Return the number of an operation in the program's order."""
        return self._position[node]

    def _run(self, state: State, values: Values, start: int, end: int, needed: set[fx.Node]) -> None:
        for number in range(start, end):
            node = self.program.nodes[number]
            values[node] = self.program.call(node, state, values)
            for source in node.all_input_nodes:
                if source in values and self._last[source] <= number and source not in needed:
                    del values[source]

    def _drop(self, values: Values, end: int, needed: set[fx.Node]) -> None:
        for node in [node for node in values if self._last[node] < end and node not in needed]:
            del values[node]

    def _largest(self) -> int:
        """Compute the largest memory, in bytes, of the values of one batch of one network at a time."""
        live, most = 0, 0
        ending: dict[int, int] = {}
        for number, node in enumerate(self.program.nodes):
            size = _bytes(node)
            live += size
            most = max(most, live)
            last = max(self._last[node], number)
            ending[last] = ending.get(last, 0) + size
            live -= ending.pop(number, 0)
        return most + sum(map(_bytes, self.program.inputs))


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
