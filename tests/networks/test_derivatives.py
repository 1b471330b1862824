"""Backward passes from given derivatives are torch's own, to the bit."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from depfuse.networks.derivatives import scalar_with


def test_gradients_are_those_of_a_backward_pass_that_is_given_them() -> None:
    torch.manual_seed(0)
    first, second, x = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), torch.randn(5, 1, 8, 8)
    middle = first(x)
    outputs = [middle, second(middle.relu()) + middle, middle.mean((2, 3))]
    given = [torch.randn_like(output) for output in outputs]
    weights = [*first.parameters(), *second.parameters()]
    found = torch.autograd.grad(scalar_with(given, outputs), weights, retain_graph=True)
    assert all(map(torch.equal, found, torch.autograd.grad(outputs, weights, given)))


def test_the_first_forward_derivative_of_a_process_is_exact_and_silent() -> None:
    script = (
        "import torch; from depfuse.networks.derivatives import forward_derivative;"
        "x = torch.tensor([0.5, 2.0]);"
        "print(forward_derivative(lambda p: p[0] ** 2 + p[1], (x, x), (torch.ones(2), x)).tolist())"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.5, 6.0]\n"
    assert "torch" not in done.stderr
