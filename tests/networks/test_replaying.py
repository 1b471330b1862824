"""A function that is run again and again: on a CPU as it is; tests/distributed/test_cuda.py has what a GPU does."""

from __future__ import annotations

import torch
from torch import Tensor

from depfuse.networks.replaying import Recording


def test_on_a_cpu_every_run_is_the_function_itself() -> None:
    recording, calls = Recording(torch.device("cpu")), []

    def scaled(values: list[Tensor], factor: float) -> Tensor:
        calls.append(factor)
        return values[0] * factor

    for number in range(6):
        assert torch.equal(recording.run(scaled, [torch.ones(2)], float(number)), torch.full((2,), float(number)))
    assert calls == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert all(type(factor) is float for factor in calls)
