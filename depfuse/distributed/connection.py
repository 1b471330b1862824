"""Connection of the processes of one `torchrun`: messages from the first one to the others."""

from __future__ import annotations

import io
import json
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from depfuse.errors import ProcessError

C = TypeVar("C", bound="Connection")

PATIENCE = timedelta(hours=6)  # wait for a process that lives but does not answer; a dead one is noticed at once
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0005, 0.02  # seconds between two polls for work


class Connection:
    """Messages between this process and the others.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and of all.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._calls = 0

    @classmethod
    def join(cls: type[C]) -> C:
        """Join the process group; all processes call it."""
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

    def announce(self, sources: Sequence[str] | None) -> None:
        """Announce work to the helpers, with the files that its networks come from; None ends them."""
        self._calls += 1
        self._store.set(self._key, json.dumps(sources))

    def await_call(self) -> Sequence[str] | None:
        """Wait for work from the first process, for as long as it takes."""
        self._calls += 1
        pause = SHORTEST_PAUSE
        while not self._store.check([self._key]):  # the store's own wait times out with an error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        sources: Sequence[str] | None = json.loads(self._store.get(self._key))
        return sources

    def broadcast(self, message: Tensor | None) -> Tensor:
        """Broadcast a message of the first process to all; all call it, the others with None."""
        with self.communicating():
            length = torch.tensor(0 if message is None else len(message))
            dist.broadcast(length, 0)
            message = torch.empty(int(length), dtype=torch.uint8) if message is None else message
            dist.broadcast(message, 0)
        return message

    def send(self, message: Tensor, to: int) -> None:
        """Send a message from the first process to another one, which calls `receive`."""
        with self.communicating():
            dist.send(torch.tensor(len(message)), to)
            dist.send(message, to)

    def receive(self) -> Any:
        """Receive what the first process sends to this one."""
        with self.communicating():
            length = torch.zeros((), dtype=torch.int64)
            dist.recv(length, 0)
            message = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(message, 0)
        return unpack(message)

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Raise `ProcessError` where another process has died meanwhile."""
        try:
            yield
        except RuntimeError as error:  # gloo has no exception of its own
            raise ProcessError(
                f"another process has ended or does not answer: see what it said above ({describe_error(error, 1)})"
            ) from error

    @property
    def _key(self) -> str:
        return f"depfuse/call {self._calls}"


def describe_error(error: BaseException, lines: int | None = None) -> str:
    """Format an exception: its whole traceback, or the first lines of its message."""
    return "".join(traceback.format_exception(error)) if lines is None else "\n".join(str(error).splitlines()[:lines])


def pack(content: object) -> Tensor:
    """Serialise an object to bytes, lambdas (as networks hold them) included."""
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=cloudpickle)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpack(message: Tensor) -> Any:
    """Restore a serialised object, with its tensors on this process's own device."""
    where = {"cuda:0": str(own_device())}
    return torch.load(io.BytesIO(message.numpy().data), map_location=where, weights_only=False)


def own_device() -> torch.device:
    """Name the CUDA device of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
