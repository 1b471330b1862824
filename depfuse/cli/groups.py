"""`depfuse groups`."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from depfuse.cli.console import Screen
from depfuse.cli.options import Architecture, RunOptions, SeedOption, spread
from depfuse.device import resolve_device
from depfuse.errors import ArchitectureError
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.groups.labels import TOUCHES_INPUT
from depfuse.groups.rules import TOUCHES_OUTPUT
from depfuse.models import build_network, example_shape


@spread
def groups(
    arch: Architecture,
    options: RunOptions,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            metavar="C,H,W",
            help="Shape of one input. Default: what suits the architecture.",
        ),
    ] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Permute every group at random in float64.")] = True,
    seed: SeedOption = 0,
) -> None:
    """Print the channel groups of a network with random weights."""
    shape = None if input_shape is None else _shape(input_shape)
    device = resolve_device(options.device)
    screen = Screen(options.quiet)
    with screen.working() as work:
        work.step("building the network")
        torch.manual_seed(seed)
        model = build_network(arch).to(device).eval()
        example = torch.randn(1, *(shape or example_shape(arch, model)), device=device)
        work.step("finding channel groups")
        found = find_groups(model, example)
        if prove:
            work.step("proving them")
            found = prove_groups(model, found, example, seed=seed)
    screen.say(str(found))
    screen.say(_summary(found))
    if _not_followed(found):
        raise typer.Exit(1)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ArchitectureError(f"--input-shape {text!r} must be positive whole numbers like 3,224,224")
    return shape


def _not_followed(found: ChannelGroups) -> dict[str, str]:
    """Names and reasons of the groups that are fixed though they touch neither input nor output."""
    return {name: reason for name, reason in found.fixed.items() if reason not in (TOUCHES_INPUT, TOUCHES_OUTPUT)}


def _summary(found: ChannelGroups) -> str:
    proof = "not proved" if found.proof_error is None else f"proved, relative error {found.proof_error:.1e}"
    wrong = _not_followed(found)
    named = "; ".join(f"{name} is fixed: {reason}" for name, reason in wrong.items())
    return f"{proof}{f'; {named}' if wrong else ''}"
