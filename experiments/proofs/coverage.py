"""Which architectures' channel groups are found and proved: one row per network of many libraries.

Hours for all of torchvision's and timm's classifiers:

    python -m experiments run coverage

Minutes for small networks of another library (spandrel, smp, transformers, torchvision_dense, pytorchcv, monai,
vit_pytorch, diffusers):

    python -m experiments run coverage --family spandrel

A process and one thread each, and once more alone what takes more than its share of the memory.

- proved: permuting all groups at random changes the output by at most 1e-9, and all that is fixed has to be;
- refused: something could not be followed or proved, and is fixed and named; or the network cannot be traced;
- error: an exception that depfuse does not raise on purpose; timeout, memory: the limit was reached.

Seconds are of one thread: `find_seconds` for the groups and taps, `pass_seconds` for one forward and backward pass in
float32, `prove_seconds` for the proof in float64 (of all threads, where a network runs alone), `copy_seconds` for a
fusion with a permuted copy by weights, of networks that are neither torchvision's classifiers nor timm's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.groups import TOLERANCE, explain, find_groups, not_followed, prove_groups
from depfuse.groups.reasons import NOT_USED, unexpected
from depfuse.models import build_network, example_shape
from depfuse.networks.forward import Example, run_network
from experiments.lib.cells import Cell, Cells
from experiments.lib.coverage_tables import summary
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import GIB, PAGE, apart
from experiments.lib.permuted_copy import recognise
from experiments.lib.processes import cores
from experiments.proofs.networks import LIBRARIES, networks
from experiments.proofs.networks.timm_families import FAMILIES, names_of

KEYS = ("library", "name")
VALUES = (
    "parameters", "groups", "free_channels", "covered_share", "reached_share", "proof_error", "find_seconds",
    "pass_seconds", "prove_seconds", "recovered", "change", "copy_seconds", "build_seconds", "peak_mib",
)  # fmt: skip
TEXTS = ("family", "status", "input", "fixed", "missed")


# --- one name --------------------------------------------------------------------------------------


def measure(seconds: float, gibibytes: float, threads: int, pixels: int, copies: bool, cell: Cell) -> dict[str, Any]:
    """Find and prove the groups of one network within limits; `threads` prove."""
    if cell["library"] == "timm":
        import timm  # noqa: F401  once, before processes are forked
    elif cell["library"] in LIBRARIES:
        networks(cell["library"])
    arguments = (cell["library"], cell["name"], threads, pixels, copies)
    found = {"doing": "building", **apart(figures, *arguments, seconds=seconds, gibibytes=gibibytes, fork=True)}
    if found["ended"]:
        if found["ended"] == "error" or "status" not in found:
            found["status"] = found["ended"]
        found["refused"] = f"{found['refused']}, while {found['doing']}"
    return found


def figures(library: str, name: str, threads: int, pixels: int, copies: bool) -> Iterator[dict[str, Any]]:
    """Yield what is known of one network as soon as it is."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    model, example = build(library, name, pixels)
    built = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    shapes = ["x".join(map(str, leaf.shape[1:])) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    told = {"input": " ".join(shapes), "build_seconds": time.perf_counter() - started}
    yield {**built, **told, "doing": "finding groups"}

    started = time.perf_counter()
    groups = find_groups(model, example)
    found = {"groups": groups.count, "free_channels": groups.free_channels}
    yield {**found, "find_seconds": time.perf_counter() - started, "doing": "running a forward and backward pass"}
    yield {"pass_seconds": seconds_of_a_pass(model, example), "doing": "proving"}

    torch.set_num_threads(threads)
    started = time.perf_counter()
    groups = prove_groups(model, groups, example)
    took = time.perf_counter() - started
    wrong = not_followed(groups)
    reasons = Counter((*groups.fixed.values(), *groups.fixed_tensors.values()))
    reached = [key for key in groups.parameters if groups.fixed_tensors.get(key) != NOT_USED]
    assert groups.proof_error is not None
    yield {
        "prove_seconds": took,
        "status": "refused" if wrong or groups.proof_error > TOLERANCE else "proved",
        "groups": groups.count,
        "free_channels": groups.free_channels,
        "covered_share": groups.covered_share,
        "reached_share": groups.share_covered(reached),
        "proof_error": groups.proof_error,
        "fixed": "; ".join(f"{reason} ({count})" for reason, count in reasons.items() if not unexpected(reason)),
        "refused": explain(wrong),
        "doing": "fusing it with a permuted copy",
    }
    if copies and library in LIBRARIES and groups.free:
        started = time.perf_counter()
        yield {**recognise(model, groups, example), "copy_seconds": time.perf_counter() - started}


def build(library: str, name: str, pixels: int) -> tuple[nn.Module, Example]:
    """Build a network in evaluation mode, with an example input."""
    if library in LIBRARIES:
        model, example = networks(library)[name]()
        return model.eval(), example
    arch = f"{library}:{name}"
    model = build_network(arch).eval()
    return model, torch.randn(1, *image_shape(arch, model, pixels))


def image_shape(arch: str, model: nn.Module, pixels: int) -> tuple[int, ...]:
    """The shape that suits a network; with sides of at most `pixels` where timm says that it takes any size."""
    channels, *sides = example_shape(arch, model)
    description = getattr(model, "default_cfg", None)
    if description is None or description.get("fixed_input_size"):
        return channels, *sides
    return channels, *(min(side, pixels) for side in sides)


def seconds_of_a_pass(model: nn.Module, example: Example) -> float:
    """Seconds of one forward and backward pass in evaluation mode; the second of two where the first is short.

    Not a number where the network has no backward pass.
    """
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        leaves = [leaf for leaf in tree_leaves(run_network(model, example)) if isinstance(leaf, Tensor)]
        try:
            torch.autograd.backward([leaf.sum() for leaf in leaves if leaf.requires_grad])
        except (RuntimeError, NotImplementedError):
            return float("nan")
        seconds = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
        if seconds > 3.0:
            break
    return seconds


# --- the names -------------------------------------------------------------------------------------


def architectures(libraries: Sequence[str], families: Sequence[str], patterns: Sequence[str]) -> list[dict[str, str]]:
    """List library, family and name of all that was asked for."""
    found = {}
    if "torchvision" in libraries and (not families or "torchvision" in families):
        for name in torchvision.models.list_models(module=torchvision.models):
            found[f"torchvision:{name}"] = {"library": "torchvision", "family": "torchvision", "name": name}
    if "timm" in libraries:
        of_timm = list(FAMILIES) if not families or "timm" in families else [one for one in families if one in FAMILIES]
        for name, family in names_of(of_timm).items() if of_timm else ():
            found[f"timm:{name}"] = {"library": "timm", "family": family, "name": name}
    for library in LIBRARIES:
        if library in families or (library.startswith("torchvision") and "torchvision" in families):
            for name in networks(library):
                found[f"{library}:{name}"] = {"library": library, "family": library, "name": name}
    return [cell for arch, cell in found.items() if not patterns or any(fnmatch(arch, pattern) for pattern in patterns)]


# --- the command -----------------------------------------------------------------------------------


def total_memory() -> float:
    """GiB of memory in this machine; 16 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * PAGE / GIB
    except (AttributeError, ValueError, OSError):
        return 16.0


def begin_anew() -> None:
    """Start this command again with large tensors' memory kept, which saves a third of the time."""
    if "MALLOC_MMAP_MAX_" not in os.environ and sys.platform == "linux":
        os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**40), OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured, and the limits."""
    libraries = ["torchvision", "timm"]
    parser.add_argument("--library", dest="libraries", nargs="+", choices=libraries, default=libraries)
    families = ["torchvision", "timm", *FAMILIES, *LIBRARIES]
    said = "of timm, or timm, torchvision, " + ", ".join(LIBRARIES)
    parser.add_argument("--family", nargs="+", choices=families, default=[], metavar="FAMILY", help=said)
    parser.add_argument("--names", nargs="+", default=[], metavar="PATTERN", help="like torchvision:resnet*")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of each name")
    parser.add_argument("--pixels", type=int, default=10**4, help="longest side of images, where timm takes any size")
    memory = round(0.85 * total_memory(), 1)
    parser.add_argument("--memory", type=float, default=memory, metavar="GIB", help="limit of all together")
    parser.add_argument("--no-copies", action="store_true", help="find and prove groups, and fuse nothing")
    parser.set_defaults(proving=1)  # threads


def scheme(options: argparse.Namespace) -> Cells:
    """How rows are measured and kept, by processes that share the memory."""
    memory = options.memory / (options.processes or cores())
    settings = (options.seconds, memory, options.proving, options.pixels, not options.no_copies)
    return Cells(KEYS, VALUES, partial(measure, *settings), TEXTS)


class _Coverage(Measurement):
    """What takes more memory than its share is measured once more, alone."""

    def rows(self, cells: Sequence[Cell], options: argparse.Namespace) -> pd.DataFrame:
        """Measure what has no row."""
        processes = options.processes = options.processes or cores()
        table = super().rows(cells, options)
        large = table[table["status"] == "memory"].to_dict("records")
        if large and processes > 1 and not options.tables_only:
            alone = {**vars(options), "processes": 1, "threads": 1, "proving": processes, "retry": True}
            super().rows(large, argparse.Namespace(**alone))
            options.tables_only = True
            table = super().rows(cells, options)
        return table

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Begin anew where something is to be measured, then measure."""
        if not self.parser().parse_args(arguments).tables_only:
            begin_anew()
        return super().main(arguments)


MEASUREMENT = _Coverage(
    "coverage",
    __doc__,
    lambda options: architectures(options.libraries, options.family, options.names),
    scheme,
    lambda rows, _: summary(rows),
    add_options,
)
