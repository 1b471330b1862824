"""Seconds of computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depfuse.networks.stopwatch import Stopwatch, device_of, seconds_of_pass

CPU = torch.device("cpu")


def test_a_function_runs_once_between_two_looks_at_the_clock() -> None:
    ticks, runs = iter([1.0, 3.5]), list[int]()
    assert Stopwatch(CPU, lambda: next(ticks)).seconds(runs.append, 7) == 2.5
    assert runs == [7]


def test_a_pass_is_timed_once_warm_and_leaves_modes_and_random_numbers() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Dropout())
    network[1].eval()
    modes = [module.training for module in network.modules()]
    runs = list[bool]()
    network.register_forward_hook(lambda module, *_: runs.append(module.training or torch.is_grad_enabled()))
    images = torch.rand(2, 3, 2, 2)
    ticks = iter([10.0, 14.0])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert seconds_of_pass(network, [(images, None), (images, None)], lambda: next(ticks)) == 4.0
    torch.testing.assert_close(torch.rand(4), expected, rtol=0.0, atol=0.0)
    assert runs == 4 * [False]
    assert [module.training for module in network.modules()] == modes


def test_a_device_finishes_its_work_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[object]()
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    Stopwatch(torch.device("cuda:1"), lambda: float(len(done))).seconds(done.append, "work")
    assert done == [torch.device("cuda:1"), "work", torch.device("cuda:1")]


def test_a_network_without_parameters_computes_on_the_cpu() -> None:
    assert device_of(nn.Flatten()) == CPU
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
