"""Work that the processes of one `torchrun` share.

The first process leads: it runs the command, takes every decision, writes and prints. The others help: they wait for
work, which comes with all that it takes, and give back sums. For the smallest example, the first process calls
`summed(sums_of, loader, network)`. Every process gets the network and some of the loader's batches, calls
`sums_of(batches, network)`, and the first one gets the sums over all of them.

Nothing is decided twice, so that no rounding can lead two processes apart. Where there is one process, all of it is an
ordinary call.
"""

from __future__ import annotations

import io
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from depfuse.errors import DepfuseError, DepfuseWarning, DeviceError, ProcessError
from depfuse.models.sources import load_sources, loaded_sources

if TYPE_CHECKING:
    from depfuse.data.loader import Loader

P = ParamSpec("P")
T = TypeVar("T")

# How long a process waits for another one that is alive but does not answer. One that has died is noticed at once.
PATIENCE = timedelta(hours=6)
# Seconds between two looks for work.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0005, 0.02
_team: Team | None = None


def led(main: Callable[[], int]) -> int:
    """Run a program in the first process, with the others as its helpers, and return its exit code.

    All processes call it, as `torchrun` started them. In the helpers it returns when the program is over: 0, or 1 where
    another process has died.
    """
    global _team
    team = Team.join()
    if not team.first:
        return team.help()
    _team = team
    try:
        return main()
    finally:
        _team = None
        team.dismiss()


def count() -> int:
    """Number of processes that work together."""
    return 1 if _team is None else _team.size


def summed(
    function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
    loader: Loader,
    *given: P.args,
    **named: P.kwargs,
) -> T:
    """What a function finds on all batches of a loader, from all processes, each of which takes some of them.

    Parameters
    ----------
    function
        Called with a loader and what is given. It returns what it found, and in the same order everywhere the tensors
        therein that are sums over batches. Labels are not to be read, and nothing given is to be changed.
    loader
        Images in a fixed order.

    Returns
    -------
    object
        What the first process found, with the sums over all processes. They differ from those of one process by the
        order of addition alone.

    Raises
    ------
    ProcessError
        Another process has died.
    """
    if _team is None:
        return function(loader, *given, **named)[0]
    return _team.summed(function, loader, *given, **named)


def together(function: Callable[..., T], *given: object, **own: object) -> T:
    """Call a function in all processes at once, and return what it returns in the first one.

    Parameters
    ----------
    function
        Called with the `Team`, None where there is one process, and what is given. It may use what `torch.distributed`
        offers. Where it raises a `DepfuseError`, it has to do so in all processes.
    own
        Further arguments, for the first process only.
    """
    team = _team
    if team is None:
        return function(None, *given, **own)
    with team.at_work():
        return function(team if team.call(_at_once, function, given) else None, *given, **own)


def check_device(device: torch.device) -> None:
    """Raise `DeviceError` unless every process can have a device of this kind for itself."""
    if _team is None or device.type == "cpu":
        return
    if device != torch.device("cuda"):
        raise DeviceError(
            f"{device} is one device for {count()} processes: give --device cuda, and each process takes its own, or "
            "--device cpu"
        )
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > devices:
        raise DeviceError(
            f"{here} processes were started here for {devices} CUDA device{'s' if devices > 1 else ''}: give "
            f"--nproc-per-node {devices}, or --device cpu"
        )


class Team:
    """The processes of one `torchrun`, as one of them sees them.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and of all.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._calls = 0
        self._whole = True  # no process is lost, and none is left in the middle of work

    @classmethod
    def join(cls) -> Team:
        """Meet the others; all processes call it."""
        both = torch.cuda.is_available() and dist.is_nccl_available()
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
        return cls(store, rank, size)

    @property
    def first(self) -> bool:
        """Whether this is the process that leads."""
        return self.rank == 0

    def own(self, device: torch.device) -> torch.device:
        """The device of this process, of the kind that the first one uses."""
        return _own_device() if device.type == "cuda" else device

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; all call it."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        with self._speaking():
            dist.all_reduce(total)
        return total

    def agreed(self, value: T) -> T:
        """What the first process gives; all call it."""
        found: T = _unpacked(self._broadcast(_packed(value) if self.first else None))
        return found

    def in_first(self, function: Callable[[], None]) -> None:
        """Call a function in the first process; where that fails, all of them stop. All call this."""
        failure = None
        if self.first:
            try:
                function()
            except Exception as error:  # the others are to be told of any
                failure = error
        self._all_well(failure=failure)

    def summed(
        self,
        function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
        loader: Loader,
        *given: P.args,
        **named: P.kwargs,
    ) -> T:
        """See the function of this name; called by the first process."""
        share, rest = divmod(len(loader), self.size)
        ends = [(number + 1) * share + min(number + 1, rest) for number in range(min(self.size, len(loader)))]
        with self.at_work():
            if not self.call(_part, function, len(ends), given, named):
                return function(loader, *given, **named)[0]
            for number, (start, end) in enumerate(pairwise(ends), start=1):
                self._send(_packed(loader.batches(start, end)), number)
            return self.added_up(function, loader.batches(0, ends[0]), *given, **named)

    def added_up(
        self,
        function: Callable[Concatenate[Loader, P], tuple[T, list[Tensor]]],
        part: Loader | None,
        *given: P.args,
        **named: P.kwargs,
    ) -> T:
        """Call the function on this process's batches, and add up; one that has none adds nothing."""
        found: T | None = None
        sums: list[Tensor] = []
        failure: Exception | None = None
        try:
            if part is not None:
                found, sums = function(part, *given, **named)
        except Exception as error:  # the first process is told of any
            failure = error
        shapes = self._all_well([(tensor.shape, tensor.dtype, tensor.device.type) for tensor in sums], failure)
        if part is None:
            sums = [
                torch.zeros(shape, dtype=dtype, device=self.own(torch.device(kind))) for shape, dtype, kind in shapes
            ]
        with self._speaking(), torch.inference_mode():
            for tensor in sums:
                plain = tensor.contiguous()
                dist.reduce(plain, 0)
                tensor.copy_(plain)
        return found  # type: ignore[return-value]

    def received(self) -> Any:
        """What the first process sends to this one."""
        with self._speaking():
            length = torch.zeros((), dtype=torch.int64)
            dist.recv(length, 0)
            message = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(message, 0)
        return _unpacked(message)

    def call(self, work: Callable[..., None], *given: object) -> bool:
        """Have all helpers do a piece of work; False, with a warning, where it cannot be sent to them."""
        try:
            message = _packed((work, given))
        except Exception as error:  # a network of the user's may hold anything
            warnings.warn(
                f"a network cannot be sent to the other processes ({type(error).__name__}: {error}): "
                "the first one works alone",
                DepfuseWarning,
                stacklevel=4,
            )
            return False
        self._say(loaded_sources())
        self._broadcast(message)
        self._all_well()
        return True

    def help(self) -> int:
        """Do what the first process asks for until it says that all is done; the exit code."""
        warnings.simplefilter("ignore", DepfuseWarning)
        if torch.cuda.is_available() and (device := _own_device()).index < torch.cuda.device_count():
            torch.cuda.set_device(device)
        try:
            while (sources := self._heard()) is not None:
                try:
                    self._work(sources)
                except (DepfuseError, _OtherError) as error:  # the first process says it
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
        """Tell the helpers that all is done."""
        if self._whole:
            self._say(None)
            dist.barrier()
            dist.destroy_process_group()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While all processes work together, calls of this module are this process's own."""
        global _team
        if not self._whole:
            raise ProcessError("an earlier failure left the other processes in the middle of their work: start again")
        before, _team, self._whole = _team, None, False
        try:
            yield
            self._whole = True
        except DepfuseError as error:
            self._whole = self._whole or not isinstance(error, ProcessError)
            raise
        finally:
            _team = before

    def _say(self, sources: Sequence[str] | None) -> None:
        """Tell the helpers that there is work, and which files its networks come from; None is the end."""
        self._calls += 1
        self._store.set(self._key, json.dumps(sources))

    def _heard(self) -> Sequence[str] | None:
        """Wait, for as long as the first process has something else to do."""
        self._calls += 1
        pause = SHORTEST_PAUSE
        while not self._store.check([self._key]):  # the store's own way to wait has an end, of which it complains
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        sources: Sequence[str] | None = json.loads(self._store.get(self._key))
        return sources

    @property
    def _key(self) -> str:
        return f"depfuse/call {self._calls}"

    def _work(self, sources: Sequence[str]) -> None:
        message = self._broadcast(None)
        work, given, failure = None, (), None
        try:
            load_sources(sources)
            work, given = _unpacked(message)
        except Exception as error:  # the user's file may raise anything
            failure = error
        self._all_well(failure=failure)
        assert work is not None
        work(self, *given)

    def _all_well(self, said: object = None, failure: Exception | None = None) -> Any:
        """What the first process says, unless any process has failed: then it raises in all of them."""
        outcomes: list[Any] = [None] * self.size
        own = failure if failure is None or isinstance(failure, DepfuseError) else _told(failure)
        with self._speaking():
            dist.all_gather_object(outcomes, (said, own))
        failures = [(number, found) for number, (_, found) in enumerate(outcomes) if found is not None]
        if not failures:
            return outcomes[0][0]
        self._whole = True  # all of them drop the work here
        if failure is not None and self.first:
            raise failure
        number, found = failures[0]
        if isinstance(found, DepfuseError) and self.first:
            raise found
        raise _OtherError(f"process {number} failed:\n{found}")

    def _broadcast(self, message: Tensor | None) -> Tensor:
        with self._speaking():
            length = torch.tensor(0 if message is None else len(message))
            dist.broadcast(length, 0)
            message = torch.empty(int(length), dtype=torch.uint8) if message is None else message
            dist.broadcast(message, 0)
        return message

    def _send(self, message: Tensor, to: int) -> None:
        with self._speaking():
            dist.send(torch.tensor(len(message)), to)
            dist.send(message, to)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo has no exception of its own
            raise ProcessError(
                f"another process has ended or does not answer: see what it said above ({_told(error, 1)})"
            ) from error


class _OtherError(RuntimeError):
    """A process met with what no one expected."""


def _at_once(team: Team, function: Callable[..., object], given: Sequence[object]) -> None:
    function(team, *given)


def _part(
    team: Team,
    function: Callable[..., tuple[object, list[Tensor]]],
    parts: int,
    given: Sequence[object],
    named: Mapping[str, object],
) -> None:
    part = team.received() if team.rank < parts else None
    team.added_up(function, part, *given, **named)


def _told(error: BaseException, lines: int | None = None) -> str:
    """An exception as text: all of its traceback, or the first lines of what it says."""
    return "".join(traceback.format_exception(error)) if lines is None else "\n".join(str(error).splitlines()[:lines])


def _packed(content: object) -> Tensor:
    """Anything as bytes, functions without a name (as networks hold them) included."""
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=cloudpickle)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpacked(message: Tensor) -> Any:
    """What was packed, with its tensors on this process's own device."""
    where = {"cuda:0": str(_own_device())}
    return torch.load(io.BytesIO(message.numpy().data), map_location=where, weights_only=False)


def _own_device() -> torch.device:
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
