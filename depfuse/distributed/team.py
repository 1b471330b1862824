"""Work shared by the processes of one `torchrun`.

The first process leads: it runs the command, takes every decision, writes and prints. The others help: they wait for
work, which comes with all its arguments, and return sums. For the smallest example, the first process calls
`all_sum(sums_of, loader, network)`. Every process gets the network and some of the loader's batches, calls
`sums_of(batches, network)`, and the first one gets the sums over all of them.

Every decision is taken once, so that rounding cannot make two processes decide differently. With one process, all of
these are ordinary calls.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from depfuse.distributed.connection import Connection, describe_error, own_device, pack, unpack
from depfuse.errors import DepfuseError, DepfuseWarning, DeviceError, ProcessError
from depfuse.models.sources import load_sources, loaded_sources

if TYPE_CHECKING:
    from depfuse.data.loader import Loader

P = ParamSpec("P")
T = TypeVar("T")

_team: Team | None = None


def launch(main: Callable[[], int]) -> int:
    """Run a program in the first process, with the others as helpers, and return its exit code.

    All processes of `torchrun` call it. In the helpers it returns when the program ends: 0, or 1 where another process
    has died.
    """
    team = Team.join()
    if not team.first:
        return team.help()
    try:
        with leading(team):
            return main()
    finally:
        team.dismiss()


@contextmanager
def leading(team: Team | None) -> Iterator[None]:
    """Lead a team within the block: calls of this module concern all its processes; with None, this one alone."""
    global _team
    before, _team = _team, team
    try:
        yield
    finally:
        _team = before


def count() -> int:
    """Count the processes of the team."""
    return 1 if _team is None else _team.size


def all_sum(
    function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
    loader: Loader,
    *arguments: P.args,
    **keywords: P.kwargs,
) -> T:
    """Call a function on the batches of a loader, divided among all processes, and sum its results.

    Parameters
    ----------
    function
        Called with a loader and the other arguments. It returns its result and the list of those tensors in the result
        that are sums over batches, in the same order in all processes. It must not read labels nor change arguments.
    loader
        Images in a fixed order.

    Returns
    -------
    object
        The first process's result, with sums over all processes. They differ from those of one process by the order of
        addition alone.

    Raises
    ------
    ProcessError
        Another process has died.
    """
    if _team is None:
        return function(loader, *arguments, **keywords)[0]
    return _team.all_sum(function, loader, *arguments, **keywords)


def run_on_all(function: Callable[..., T], *arguments: object, **of_the_first: object) -> T:
    """Call a function in all processes at once, and return what it returns in the first one.

    Parameters
    ----------
    function
        Called with the `Team` (None with one process) and the arguments. It may call `torch.distributed`. Where it
        raises a `DepfuseError`, it must do so in all processes.
    of_the_first
        Further arguments, for the first process only.
    """
    team = _team
    if team is None:
        return function(None, *arguments, **of_the_first)
    with team.at_work():
        return function(team if team.call(_at_once, function, arguments) else None, *arguments, **of_the_first)


def check_device(device: torch.device) -> None:
    """Raise `DeviceError` unless every process can have a device of this kind for itself."""
    if _team is None or device.type == "cpu":
        return
    if device != torch.device("cuda"):
        raise DeviceError(
            f'{device} is one device for {count()} processes: give `device="cuda"`, and each process takes its own, '
            'or `device="cpu"`'
        )
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > devices:
        raise DeviceError(
            f"{here} processes were started here for {devices} CUDA device{'s' if devices > 1 else ''}: give "
            f'--nproc-per-node {devices}, or `device="cpu"`'
        )


class Team(Connection):
    """The processes of one `torchrun`, as seen by one of them.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and of all.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        super().__init__(store, rank, size)
        self._whole = True  # no process has died, and none is in the middle of work

    def local_device(self, device: torch.device) -> torch.device:
        """Return the device of this process that corresponds to one of the first process."""
        return own_device() if device.type == "cuda" else device

    def add(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes; all call it."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        with self.communicating():
            dist.all_reduce(total)
        return total

    def from_first(self, value: T) -> T:
        """Return the value of the first process in all of them; all call it."""
        agreed: T = unpack(self.broadcast(pack(value) if self.first else None))
        return agreed

    def in_first(self, function: Callable[[], None]) -> None:
        """Call a function in the first process; where that fails, all of them stop. All call this."""
        failure = None
        if self.first:
            try:
                function()
            except Exception as error:  # to be raised in all processes
                failure = error
        self._gather_failures(failure=failure)

    def all_sum(
        self,
        function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
        loader: Loader,
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """Do the work of the function `all_sum`; called by the first process."""
        share, rest = divmod(len(loader), self.size)
        ends = [(number + 1) * share + min(number + 1, rest) for number in range(min(self.size, len(loader)))]
        with self.at_work():
            if not self.call(_part, function, len(ends), arguments, keywords):
                return function(loader, *arguments, **keywords)[0]
            for number, (start, end) in enumerate(pairwise(ends), start=1):
                self.send(pack(loader.batches(start, end)), number)
            return self.sum_over_processes(function, loader.batches(0, ends[0]), *arguments, **keywords)

    def sum_over_processes(
        self,
        function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
        part: Loader | None,
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """Call the function on this process's batches, and sum over processes; one without batches adds zeros."""
        result: T | None = None
        sums: list[Tensor] = []
        failure: Exception | None = None
        try:
            if part is not None:
                result, sums = function(part, *arguments, **keywords)
        except Exception as error:  # to be raised in the first process
            failure = error
        shapes = self._gather_failures([(tensor.shape, tensor.dtype, tensor.device.type) for tensor in sums], failure)
        if part is None:
            sums = [
                torch.zeros(shape, dtype=dtype, device=self.local_device(torch.device(kind)))
                for shape, dtype, kind in shapes
            ]
        with self.communicating(), torch.inference_mode():
            for tensor in sums:
                plain = tensor.contiguous()
                dist.reduce(plain, 0)
                tensor.copy_(plain)
        return result  # type: ignore[return-value]

    def call(self, work: Callable[..., None], *arguments: object) -> bool:
        """Send work to all helpers; return False, with a warning, where it cannot be sent."""
        try:
            message = pack((work, arguments))
        except Exception as error:  # a network of the user's may hold anything
            warnings.warn(
                f"a network cannot be sent to the other processes ({type(error).__name__}: {error}): "
                "the first one works alone",
                DepfuseWarning,
                stacklevel=4,
            )
            return False
        self.announce(loaded_sources())
        self.broadcast(message)
        self._gather_failures()
        return True

    def help(self) -> int:
        """Do the first process's work until it dismisses the helpers; return the exit code."""
        warnings.simplefilter("ignore", DepfuseWarning)
        if torch.cuda.is_available() and (device := own_device()).index < torch.cuda.device_count():
            torch.cuda.set_device(device)
        try:
            while (sources := self.await_call()) is not None:
                try:
                    self._work(sources)
                except (DepfuseError, _OtherError) as error:  # the first process reports it
                    if isinstance(error, ProcessError):
                        return 1
            dist.barrier()
        except dist.DistError:
            return 1
        except KeyboardInterrupt:
            return 130
        dist.destroy_process_group()
        return 0

    def dismiss(self) -> None:
        """Dismiss the helpers."""
        if self._whole:
            self.announce(None)
            dist.barrier()
            dist.destroy_process_group()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Mark the block as work of all processes: in it, calls of this module concern this process alone."""
        if not self._whole:
            raise ProcessError("an earlier failure left the other processes in the middle of their work: start again")
        self._whole = False
        try:
            with leading(None):
                yield
            self._whole = True
        except DepfuseError as error:
            self._whole = self._whole or not isinstance(error, ProcessError)
            raise

    def _work(self, sources: Sequence[str]) -> None:
        message = self.broadcast(None)
        work, arguments, failure = None, (), None
        try:
            load_sources(sources)
            work, arguments = unpack(message)
        except Exception as error:  # the user's file may raise anything
            failure = error
        self._gather_failures(failure=failure)
        assert work is not None
        work(self, *arguments)

    def _gather_failures(self, value: object = None, failure: Exception | None = None) -> Any:
        """Return the first process's value, unless any process has failed: then raise in all of them."""
        outcomes: list[Any] = [None] * self.size
        shown = failure if failure is None or isinstance(failure, DepfuseError) else describe_error(failure)
        with self.communicating():
            dist.all_gather_object(outcomes, (value, shown))
        failures = [(number, error) for number, (_, error) in enumerate(outcomes) if error is not None]
        if not failures:
            return outcomes[0][0]
        self._whole = True  # all processes abandon the work here
        if failure is not None and self.first:
            raise failure
        number, error = failures[0]
        if isinstance(error, DepfuseError) and self.first:
            raise error
        raise _OtherError(f"process {number} failed:\n{error}")


class _OtherError(RuntimeError):
    """An unexpected exception in some process."""


def _at_once(team: Team, function: Callable[..., object], arguments: Sequence[object]) -> None:
    function(team, *arguments)


def _part(
    team: Team,
    function: Callable[..., tuple[object, list[Tensor]]],
    parts: int,
    arguments: Sequence[object],
    keywords: Mapping[str, object],
) -> None:
    part = team.receive() if team.rank < parts else None
    team.sum_over_processes(function, part, *arguments, **keywords)
