"""Which architectures' channel groups are found and proved: one row per name of torchvision and timm.

    python -m experiments run coverage

Hours for all names; a process and one thread each, and once more alone what takes more than its share of the memory.

- proved: permuting all groups at random changes the output by at most 1e-9, and all that is fixed has to be;
- refused: something could not be followed or proved, and is fixed and named; or the network cannot be traced;
- error: an exception that depfuse does not raise on purpose; timeout, memory: the limit was reached.

Seconds are of one thread: `find_seconds` for the groups and taps, `pass_seconds` for one forward and backward pass in
float32, `prove_seconds` for the proof in float64 (of all threads, where a network runs alone).
"""

from __future__ import annotations

import argparse
import os
import re
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

from depfuse.errors import RecipeError
from depfuse.groups import TOLERANCE, explain, find_groups, not_followed, prove_groups
from depfuse.groups.reasons import named, unexpected
from depfuse.models import build_network, example_shape
from experiments.lib.cells import Cell, Cells
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import GIB, PAGE, apart
from experiments.lib.processes import cores
from experiments.lib.tables import markdown

KEYS = ("library", "name")
VALUES = (
    "parameters", "groups", "free_channels", "covered_share", "proof_error", "find_seconds", "pass_seconds",
    "prove_seconds", "build_seconds", "peak_mib",
)  # fmt: skip
TEXTS = ("family", "status", "input", "fixed")
FAMILIES = {
    "resnet": ["resnet*", "wide_resnet*", "nf_resnet*"],
    "resnext": ["resnext*"],
    "seresnet": ["seresnet*", "seresnext*", "legacy_seresne?t*", "nf_seresnet*"],
    "ecaresnet": ["ecaresnet*", "ecaresnext*", "eca_resne?t*", "nf_ecaresnet*"],
    "skresnet": ["skresnet*", "skresnext*"],
    "res2net": ["res2net*", "res2next*"],
    "regnet": ["regnet*", "nf_regnet*"],
    "densenet": ["densenet*"],
    "dla": ["dla*"],
    "hrnet": ["hrnet*"],
    "vgg": ["vgg*", "repvgg*"],
    "mobilenet": ["mobilenet*", "tf_mobilenet*"],
    "efficientnet": ["efficientnet*", "tf_efficientnet*"],
    "mnasnet": ["mnasnet*", "semnasnet*", "spnasnet*"],
    "ghostnet": ["ghostnet*"],
    "rexnet": ["rexnet*"],
    "convnext": ["convnext*"],
    "nfnet": ["nfnet*", "dm_nfnet*", "eca_nfnet*"],
    "cspnet": ["csp*", "cs3*", "darknet*", "sedarknet*"],
    "inception": ["inception*"],
    "xception": ["xception*", "legacy_xception*"],
    "dpn": ["dpn*"],
    "selecsls": ["selecsls*"],
    "vit": ["vit_tiny*", "vit_xsmall*", "vit_small*"],
    "deit": ["deit_tiny*", "deit_small*", "deit3_small*"],
    "swin": ["swin_tiny*", "swin_small*", "swin_s3_tiny*", "swin_s3_small*", "swinv2_tiny*", "swinv2_small*",
             "swinv2_cr_tiny*", "swinv2_cr_small*"],
}  # fmt: skip
TRANSFORMERS = ("*vit_*", "*swin*", "*deit*")
LEAST_SHARE = {True: 0.90, False: 0.95}  # of the parameters in a free group: transformers, convolutional networks


# --- one name --------------------------------------------------------------------------------------


def measure(seconds: float, gibibytes: float, threads: int, pixels: int, cell: Cell) -> dict[str, Any]:
    """Find and prove the groups of one network within limits; `threads` prove."""
    if cell["library"] == "timm":
        import timm  # noqa: F401  once, before processes are forked
    arguments = (f"{cell['library']}:{cell['name']}", threads, pixels)
    found = {"doing": "building", **apart(figures, *arguments, seconds=seconds, gibibytes=gibibytes, fork=True)}
    if found["ended"]:
        found["status"] = found["ended"]
        if found["ended"] in ("timeout", "memory"):
            found["refused"] = f"{found['refused']}, while {found['doing']}"
    return found


def figures(arch: str, threads: int, pixels: int) -> Iterator[dict[str, Any]]:
    """Yield what is known of one network as soon as it is."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    model = build_network(arch).eval()
    example = torch.randn(1, *image_shape(arch, model, pixels))
    built = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    shape = "x".join(map(str, example.shape[1:]))
    yield {**built, "input": shape, "build_seconds": time.perf_counter() - started, "doing": "finding groups"}

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
    assert groups.proof_error is not None
    yield {
        "prove_seconds": took,
        "status": "refused" if wrong or groups.proof_error > TOLERANCE else "proved",
        "groups": groups.count,
        "free_channels": groups.free_channels,
        "covered_share": groups.covered_share,
        "proof_error": groups.proof_error,
        "fixed": "; ".join(f"{reason} ({count})" for reason, count in reasons.items() if not unexpected(reason)),
        "refused": explain(wrong),
    }


def image_shape(arch: str, model: nn.Module, pixels: int) -> tuple[int, ...]:
    """The shape that suits a network; with sides of at most `pixels` where timm says that it takes any size."""
    channels, *sides = example_shape(arch, model)
    description = getattr(model, "default_cfg", None)
    if description is None or description.get("fixed_input_size"):
        return channels, *sides
    return channels, *(min(side, pixels) for side in sides)


def seconds_of_a_pass(model: nn.Module, example: Tensor) -> float:
    """Seconds of one forward and backward pass in evaluation mode; the second of two where the first is short."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        outputs = [leaf for leaf in tree_leaves(model(example)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.autograd.backward([leaf.sum() for leaf in outputs])
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
        names = _timm_names()
        for family in families or FAMILIES:
            for name in names:
                if any(fnmatch(name, glob) for glob in FAMILIES.get(family, ())):
                    found.setdefault(f"timm:{name}", {"library": "timm", "family": family, "name": name})
    return [cell for arch, cell in found.items() if not patterns or any(fnmatch(arch, pattern) for pattern in patterns)]


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        raise RecipeError(
            "timm's networks need timm, which is not installed: pip install 'depfuse[timm]', or --library torchvision"
        ) from None
    return list(timm.list_models())


# --- the summary -----------------------------------------------------------------------------------


def summary(rows: pd.DataFrame) -> str:
    """Sum up the rows as Markdown."""
    timm = rows["library"] == "timm"
    rows = rows.assign(
        family=rows["family"].mask(timm, "timm " + rows["family"]), label=rows["library"] + ":" + rows["name"]
    )
    lines, families = [], list(rows.groupby("family"))
    for family, own in [*families, *([("all", rows)] if len(families) > 1 else [])]:
        proved, seconds = own[own["status"] == "proved"], own["find_seconds"]
        error, share = proved["proof_error"].max(), 100 * proved["covered_share"].min()
        took = (f"{value:.1f} s" for value in (seconds.median(), seconds.max()))
        lines.append([str(family), f"{len(proved)} of {len(own)}", f"{error:.1e}", f"{share:.1f} %", *took])
    heads = ("family", "proved", "worst error", "least share", "find, median", "find, longest")
    return "\n\n".join([markdown(heads, lines), _shares(rows), _slowest(rows), _failures(rows)])


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _shares(rows: pd.DataFrame) -> str:
    rows = rows.assign(least=[LEAST_SHARE[any(fnmatch(name, of) for of in TRANSFORMERS)] for name in rows["name"]])
    low = [
        f"{row['label']} {100 * row['covered_share']:.1f} % (at least {100 * row['least']:.0f} %)"
        for row in rows[rows["covered_share"] < rows["least"]].to_dict("records")
    ]
    return f"Share of parameters in a free group too low: {len(low)}\n\n{_listed(low)}".rstrip()


def _slowest(rows: pd.DataFrame) -> str:
    timed = rows.dropna(subset=["find_seconds", "pass_seconds"]).sort_values("find_seconds", ascending=False)
    slow = timed["label"][timed["find_seconds"] > 1.0 + 10.0 * timed["pass_seconds"]]
    lines = [
        f"{row['label']}: {row['find_seconds']:.3f} s, one pass {row['pass_seconds']:.3f} s,"
        f" proof {row['prove_seconds']:.3f} s"
        for row in timed.head(10).to_dict("records")
    ]
    return f"Slowest to find:\n\n{_listed(lines)}\n\nBeyond 1 s and ten passes: {', '.join(slow) or 'none'}"


def _failures(rows: pd.DataFrame) -> str:
    failed = rows[rows["status"] != "proved"]
    failed = failed.assign(why=[_kinds(row["status"], row["refused"]) for row in failed.to_dict("records")])
    kinds = [(*kind, list(own["label"])) for kind, own in failed.groupby(["status", "why"])]
    lines = [
        f"{status}: {why or 'no reason'} — {named(names, 6)}"
        for status, why, names in sorted(kinds, key=lambda kind: (kind[0], -len(kind[2])))
    ]
    return f"Not proved: {len(failed)}\n\n{_listed(lines)}".rstrip()


def _kinds(status: str, why: str) -> str:
    """What `why` says, without the places: equal for networks that fail in the same way."""
    if status != "refused":
        return why
    reasons = re.findall(r" \(((?:[^()]|\(\))*)\)(?:; |$)", why) or [why]
    kinds = (re.sub(r"\d+(\.\d+)?e[+-]\d+", "...", re.sub(r" in (the network itself|\S+)", "", r)) for r in reasons)
    return "; ".join(dict.fromkeys(kinds))


def total_memory() -> float:
    """GiB of memory in this machine; 16 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * PAGE / GIB
    except (AttributeError, ValueError, OSError):
        return 16.0


# --- the command -----------------------------------------------------------------------------------


def begin_anew() -> None:
    """Start this command again with large tensors' memory kept, which saves a third of the time."""
    if "MALLOC_MMAP_MAX_" not in os.environ and sys.platform == "linux":
        os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**40), OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured, and the limits."""
    libraries = ["torchvision", "timm"]
    parser.add_argument("--library", dest="libraries", nargs="+", choices=libraries, default=libraries)
    parser.add_argument("--family", nargs="+", choices=["torchvision", *FAMILIES], default=[], metavar="FAMILY")
    parser.add_argument("--names", nargs="+", default=[], metavar="PATTERN", help="like torchvision:resnet*")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of each name")
    parser.add_argument("--pixels", type=int, default=10**4, help="longest side of images, where timm takes any size")
    memory = round(0.85 * total_memory(), 1)
    parser.add_argument("--memory", type=float, default=memory, metavar="GIB", help="limit of all together")
    parser.set_defaults(proving=1)  # threads


def scheme(options: argparse.Namespace) -> Cells:
    """How rows are measured and kept, by processes that share the memory."""
    limits = (options.seconds, options.memory / (options.processes or cores()), options.proving, options.pixels)
    return Cells(KEYS, VALUES, partial(measure, *limits), TEXTS)


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
