"""Which architectures' channel groups are found and proved: one row per name of torchvision and timm.

    python -m experiments run coverage

Hours for all names; a process and one thread each, the smallest networks first, the largest at the end, alone.

- proved: permuting all groups at random changes the output by at most 1e-9, and all that is fixed has to be;
- refused: something could not be followed or proved, and is fixed and named; or the network cannot be traced;
- error: an exception that depfuse does not raise on purpose; timeout, memory: the limit was reached.

Seconds are of one thread: `find_seconds` for the groups and taps, `pass_seconds` for one forward and backward pass in
float32, `prove_seconds` for the proof in float64 (of all threads, where a network runs alone).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.errors import DepfuseError
from depfuse.groups import TOLERANCE, explain, find_groups, not_followed, prove_groups
from depfuse.groups.reasons import named, unexpected
from depfuse.io.atomic_files import replacing
from depfuse.models import build_network, example_shape
from experiments.lib.places import MEASUREMENTS

CSV = MEASUREMENTS / "coverage.csv"
FIELDS = (
    "library", "family", "name", "status", "parameters", "input", "groups", "free_channels", "covered_share",
    "proof_error", "find_seconds", "pass_seconds", "prove_seconds", "build_seconds", "peak_mib", "fixed", "why",
)  # fmt: skip
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
GIB = 2**30
BYTES_PER_PARAMETER = 13  # of the memory that the largest networks take
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
Row = dict[str, Any]


@dataclass
class Job:
    """One name while it is measured."""

    arch: str
    row: Row
    process: BaseProcess
    inbox: Connection
    limit: float
    started: float = field(default_factory=time.monotonic)
    peak: int = 0

    def watch(self) -> None:
        """Note the memory that the process takes."""
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may be gone; there may be no /proc
            resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE
            self.peak = max(self.peak, resident)

    def receive(self) -> None:
        """Take in what the process has found so far."""
        with contextlib.suppress(EOFError, OSError):
            while self.inbox.poll():
                self.row.update(self.inbox.recv())


# --- what runs in the process of one name -----------------------------------------------------------


def measure(arch: str, outbox: Connection, threads: int, pixels: int) -> None:
    """Find and prove the groups of one network; what is known is sent as soon as it is."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        _measure(arch, outbox, threads, pixels)
    except DepfuseError as error:
        outbox.send({"status": "refused", "why": str(error)})
    except MemoryError:
        outbox.send({"status": "memory"})
    except Exception as error:  # the table goes on
        last = traceback.extract_tb(error.__traceback__)[-1]
        lines = str(error).strip().splitlines() or [""]
        why = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {lines[0]}"
        outbox.send({"status": "error", "why": why})


def _measure(arch: str, outbox: Connection, threads: int, pixels: int) -> None:
    started = time.perf_counter()
    model = build_network(arch).eval()
    example = torch.randn(1, *image_shape(arch, model, pixels))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    built = {"parameters": parameters, "input": "x".join(map(str, example.shape[1:]))}
    outbox.send({**built, "build_seconds": _rounded(time.perf_counter() - started), "why": "while finding groups"})

    started = time.perf_counter()
    groups = find_groups(model, example)
    found = {"groups": groups.count, "free_channels": groups.free_channels, "why": "during a forward and backward pass"}
    outbox.send({**found, "find_seconds": _rounded(time.perf_counter() - started)})
    outbox.send({"pass_seconds": _rounded(seconds_of_a_pass(model, example)), "why": "while proving"})

    torch.set_num_threads(threads)
    started = time.perf_counter()
    groups = prove_groups(model, groups, example)
    wrong = not_followed(groups)
    reasons = Counter((*groups.fixed.values(), *groups.fixed_tensors.values()))
    fixed = [f"{reason} ({count})" for reason, count in reasons.items() if not unexpected(reason)]
    assert groups.proof_error is not None
    outbox.send(
        {
            "prove_seconds": _rounded(time.perf_counter() - started),
            "status": "refused" if wrong or groups.proof_error > TOLERANCE else "proved",
            "groups": groups.count,
            "free_channels": groups.free_channels,
            "covered_share": round(groups.covered_share, 4),
            "proof_error": f"{groups.proof_error:.1e}",
            "fixed": "; ".join(fixed),
            "why": explain(wrong),
        }
    )


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


def count_parameters(arch: str) -> tuple[str, int | None]:
    """(architecture, number of parameters), without allocating them where that is possible; None where it fails."""
    for device in ("meta", "cpu"):  # some networks read values while they are built
        with contextlib.suppress(Exception), torch.device(device):
            return arch, sum(parameter.numel() for parameter in build_network(arch).parameters())
    return arch, None


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


# --- the table -------------------------------------------------------------------------------------


class Table:
    """Rows by architecture; the file is replaced as a whole whenever a row comes in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.exists():
            read = pd.read_csv(path, dtype=str, keep_default_na=False)
            self.rows = {f"{row['library']}:{row['name']}": dict(row) for row in read.to_dict("records")}

    def add(self, arch: str, row: Row) -> None:
        """Take a row in, in the place of any older one."""
        self.rows[arch] = {name: str(row.get(name, "")) for name in FIELDS}
        with replacing(self.path) as temporary:
            pd.DataFrame(list(self.rows.values()), columns=list(FIELDS)).to_csv(temporary, index=False)


def architectures(libraries: Sequence[str], families: Sequence[str], patterns: Sequence[str]) -> dict[str, Row]:
    """Architecture -> the first fields of its row, for all names that were asked for."""
    found: dict[str, Row] = {}
    if "torchvision" in libraries and (not families or "torchvision" in families):
        for name in torchvision.models.list_models(module=torchvision.models):
            found[f"torchvision:{name}"] = {"library": "torchvision", "family": "torchvision", "name": name}
    if "timm" in libraries:
        for family, globs in FAMILIES.items():
            if not families or family in families:
                for name in _timm_names():
                    if any(fnmatch(name, glob) for glob in globs):
                        found.setdefault(f"timm:{name}", {"library": "timm", "family": family, "name": name})
    if patterns:
        found = {arch: row for arch, row in found.items() if any(fnmatch(arch, pattern) for pattern in patterns)}
    return found


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        sys.exit(
            "timm's networks need timm, which is not installed: pip install 'depfuse[timm]', or --library torchvision"
        )
    return list(timm.list_models())


def sizes_of(names: Iterable[str], cache: Path, jobs: int, context: Any) -> dict[str, int]:
    """Number of parameters of each architecture; kept in a file, since counting takes seconds per name."""
    known: dict[str, int | None] = json.loads(cache.read_text()) if cache.exists() else {}
    missing = [arch for arch in names if arch not in known]
    if missing:
        print(f"counting the parameters of {len(missing)} networks", file=sys.stderr, flush=True)
        with context.Pool(jobs) as pool:
            known.update(pool.imap_unordered(count_parameters, missing, chunksize=4))
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(known))
    return {arch: known[arch] or sys.maxsize for arch in names}


class Runner:
    """Runs names in processes of their own, some at a time, and enters what they find into the table."""

    def __init__(self, table: Table, sizes: Mapping[str, int], chosen: argparse.Namespace, context: Any) -> None:
        self._table, self._sizes, self._context = table, sizes, context
        self._jobs, self._seconds, self._pixels = chosen.jobs, chosen.seconds, chosen.pixels
        self._memory = int(chosen.memory * GIB)
        self._running: list[Job] = []

    def run(self, rows: dict[str, Row]) -> None:
        """All rows, several at a time; then alone, with a thread for each job, those that need much memory."""
        share = self._memory // self._jobs
        large = [arch for arch in rows if self._sizes[arch] * BYTES_PER_PARAMETER > share]
        try:
            too_large = self._run({arch: row for arch, row in rows.items() if arch not in large}, self._jobs, share)
            self._run({arch: rows[arch] for arch in (*(too_large if self._jobs > 1 else ()), *large)}, 1, self._memory)
        finally:
            for job in self._running:
                job.process.kill()

    def _run(self, rows: dict[str, Row], jobs: int, memory: int) -> list[str]:
        waiting, finished, too_large = list(rows), 0, []
        while waiting or self._running:
            while waiting and len(self._running) < jobs:
                arch = waiting.pop(0)
                self._running.append(self._start(arch, dict(rows[arch]), memory, self._jobs // jobs))
            time.sleep(0.05)
            for job in list(self._running):
                if self._is_over(job):
                    self._running.remove(job)
                    finished += 1
                    job.row["peak_mib"] = job.peak // 2**20
                    self._table.add(job.arch, job.row)
                    if job.row["status"] == "memory":
                        too_large.append(job.arch)
                    why = str(job.row.get("why", ""))[:100]
                    taken = time.monotonic() - job.started
                    print(f"{finished}/{len(rows)} {job.row['status']:8s} {job.arch} {taken:.0f} s {why}", flush=True)
        return too_large

    def _start(self, arch: str, row: Row, memory: int, threads: int) -> Job:
        inbox, outbox = self._context.Pipe(duplex=False)
        process = self._context.Process(target=measure, args=(arch, outbox, threads, self._pixels), daemon=True)
        row["why"] = "while building the network"
        process.start()
        outbox.close()
        return Job(arch, row, process, inbox, memory)

    def _is_over(self, job: Job) -> bool:
        job.watch()
        job.receive()
        if job.process.is_alive():
            late = time.monotonic() - job.started > self._seconds
            if not late and job.peak <= job.limit:
                return False
            job.process.kill()
            job.row["status"] = "timeout" if late else "memory"
        job.process.join()
        job.receive()
        if "status" not in job.row:  # killed by the system, most likely for its memory
            killed = job.process.exitcode == -9
            job.row["status"] = "memory" if killed else "error"
            job.row["why"] = f"exit code {job.process.exitcode} {job.row['why']}"
        return True


# --- the summary -----------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> str:
    """The table in short, as Markdown."""
    lines = ["| family | proved | worst error | least share | find, median | find, longest |", "| --- " * 6 + "|"]
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row["family"] if row["library"] != "timm" else f"timm {row['family']}"].append(row)
    for family, own in [*sorted(families.items()), *([("all", list(rows))] if len(families) > 1 else [])]:
        proved = [row for row in own if row["status"] == "proved"]
        seconds = sorted(_numbers(own, "find_seconds"))
        cells = [
            f"{len(proved)} of {len(own)}",
            f"{max(_numbers(proved, 'proof_error'), default=float('nan')):.1e}",
            f"{100 * min(_numbers(proved, 'covered_share'), default=float('nan')):.1f} %",
            *(f"{value:.1f} s" for value in ((seconds[len(seconds) // 2], seconds[-1]) if seconds else (0.0, 0.0))),
        ]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    lines += ["", *_shares(rows), "", *_slowest(rows), "", *_failures(rows)]
    return "\n".join(lines).rstrip()


def _numbers(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def _label(row: Row) -> str:
    return f"{row['library']}:{row['name']}"


def _shares(rows: Sequence[Row]) -> list[str]:
    low = []
    for row in rows:
        least = LEAST_SHARE[any(fnmatch(row["name"], pattern) for pattern in TRANSFORMERS)]
        if row["covered_share"] and float(row["covered_share"]) < least:
            low.append(f"{_label(row)} {100 * float(row['covered_share']):.1f} % (at least {100 * least:.0f} %)")
    return [f"Share of parameters in a free group too low: {len(low)}", "", *(f"- {line}" for line in low)]


def _slowest(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row["find_seconds"] and row["pass_seconds"]]
    slow = [row for row in timed if float(row["find_seconds"]) > 1.0 + 10.0 * float(row["pass_seconds"])]
    timed.sort(key=lambda row: -float(row["find_seconds"]))
    lines = [
        f"- {_label(row)}: {row['find_seconds']} s, one pass {row['pass_seconds']} s, proof {row['prove_seconds']} s"
        for row in timed[:10]
    ]
    too_long = f"Beyond 1 s and ten passes: {', '.join(map(_label, slow)) or 'none'}"
    return ["Slowest to find:", "", *lines, "", too_long]


def _failures(rows: Sequence[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] != "proved":
            found[row["status"], _kinds(row)].append(_label(row))
    lines = [
        f"- {status}: {why or 'no reason'} — {named(names, 6)}"
        for (status, why), names in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    ]
    total = sum(map(len, found.values()))
    return [f"Not proved: {total}", "", *lines]


def _kinds(row: Row) -> str:
    """What `why` says, without the places: equal for networks that fail in the same way."""
    if row["status"] != "refused":
        return str(row["why"])
    reasons = re.findall(r" \(((?:[^()]|\(\))*)\)(?:; |$)", row["why"]) or [row["why"]]
    kinds = (re.sub(r"\d+(\.\d+)?e[+-]\d+", "...", re.sub(r" in (the network itself|\S+)", "", r)) for r in reasons)
    return "; ".join(dict.fromkeys(kinds))


def total_memory() -> float:
    """GiB of memory in this machine; 16 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * PAGE / GIB
    except (AttributeError, ValueError, OSError):
        return 16.0


def page() -> str:
    """Sum up what is stored."""
    return summary(list(Table(CSV).rows.values()))


def begin_anew() -> None:
    """Start this command again with large tensors' memory kept, which saves a third of the time."""
    if "MALLOC_MMAP_MAX_" not in os.environ and sys.platform == "linux":
        os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**40), OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has no row, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    libraries = ["torchvision", "timm"]
    parser.add_argument("--library", dest="libraries", nargs="+", choices=libraries, default=libraries)
    parser.add_argument("--family", nargs="+", choices=["torchvision", *FAMILIES], default=[], metavar="FAMILY")
    parser.add_argument("--names", nargs="+", default=[], metavar="PATTERN", help="like torchvision:resnet*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of each name")
    parser.add_argument(
        "--pixels", type=int, default=10**4, help="longest image side, for networks of timm that take any"
    )
    parser.add_argument(
        "--memory", type=float, default=round(0.85 * total_memory(), 1), metavar="GIB", help="limit of all together"
    )
    parser.add_argument("--again", nargs="*", metavar="STATUS", help="also names that have a row, of these statuses")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="only print the summary of what is there")
    chosen = parser.parse_args(arguments)
    begin_anew()
    table = Table(chosen.csv)
    names = architectures(chosen.libraries, chosen.family, chosen.names)
    if not chosen.summary:
        # Forked processes have the libraries loaded; nothing has been computed here that a fork could break.
        has_fork = "fork" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if has_fork else "spawn")
        left = {arch: row for arch, row in names.items() if wanted(table.rows.get(arch), chosen.again)}
        sizes = sizes_of(left, chosen.csv.with_suffix(".sizes.json"), chosen.jobs, context)
        Runner(table, sizes, chosen, context).run(
            {arch: left[arch] for arch in sorted(left, key=lambda a: (sizes[a], a))}
        )
    print("\n" + summary([row for arch, row in table.rows.items() if arch in names]))
    return 0


def wanted(row: Row | None, again: Sequence[str] | None) -> bool:
    """Whether a name is to be measured: it has no row, or one that is wanted again."""
    return row is None or (again is not None and (not again or row["status"] in again))


if __name__ == "__main__":
    sys.exit(main())
