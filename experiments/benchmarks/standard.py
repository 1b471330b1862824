"""What the standard fusion costs: each stage beside the bare forward passes of the parents.

    python -m experiments run standard --sets resnet20-8-1-8-2 resnet20-1-4 halves --torch-threads 1 --runs 3

A minute a run of a ResNet20, and ten of a ResNet18 of full width. Every run is a process of its own, on the processor
as it is, as one without AVX-512 (`avx2`), or on a GPU (`gpu`). The bare forward passes of all parents over the
calibration images are timed before and after the fusion, and their mean is the unit of the ratios. Shown are medians
over runs: CPU seconds, which work beside it hardly changes, where one thread computes, and seconds on the wall where
several do, or a GPU, on which the first fusion of a process is not measured. Memory is the peak of each stage above
what the process held before the fusion, of a GPU all of its own memory, and `bound` four times the parents and 1 GiB.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from depfuse import Recipe, fuse
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.recipe.presets import names as preset_names
from experiments.lib.cells import Cells
from experiments.lib.command import check_counts, numbers
from experiments.lib.data_files import files_of
from experiments.lib.material import read_material
from experiments.lib.measure import drawn
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import apart, whole
from experiments.lib.parents.sets import DIGITS, SETS
from experiments.lib.size import parameters
from experiments.lib.tables import markdown
from experiments.lib.timing import layouts_of, pass_forward

KEYS = ("set", "preset", "images", "processor", "cores", "run")
STAGES = ("groups", "align", "merge", "refit", "renorm", "best", "evaluate")
BARE = "bare"
VALUES = (
    *(f"{stage}_{what}" for stage in (BARE, *STAGES) for what in ("wall", "cpu")),
    *(f"{stage}_mib" for stage in STAGES),
    "parents_mib", "accuracy", "held_out_accuracy", "parents_accuracy",
)  # fmt: skip
IMAGES, FEW_IMAGES = 2000, 900  # for calibration; of digits there are no more
TESTED = 1000  # images that the fusion's networks are scored on
# Kind of processor -> environment in which torch and oneDNN take this machine for one.
PROCESSORS: dict[str, dict[str, str]] = {
    "as it is": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "gpu": {},
}
GPU = torch.device("cuda")
KINDS = {"as it is": "The processor as it is", "avx2": "As a processor with avx2 alone", "gpu": "A GPU"}
BOUND_TIMES, BOUND_MIB = 4, 1024  # of memory: times the parents, and beside that
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


# --- one run ---------------------------------------------------------------------------------------


def measure(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a run in a process of its own, on a processor of the cell's kind."""
    with _environment(PROCESSORS[cell["processor"]]):
        return whole(apart(figures, cell))


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, which processes that begin inside inherit."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class Stages:
    """Seconds and peak memory of the stages of a fusion, each of which ends as the next one begins."""

    def __init__(self, device: torch.device) -> None:
        self.found: dict[str, float] = {}
        self._device = device
        self._held, self._stage = _memory("VmRSS"), ""
        self._begun = _clocks(self._device)

    def begin(self, stage: str) -> None:
        """End the stage before this one; '' begins none, and stages of other names belong to the one before them."""
        if stage and stage not in STAGES:
            return
        wall, cpu = _clocks(self._device)
        if self._stage:
            for what, now, then in zip(("wall", "cpu"), (wall, cpu), self._begun, strict=True):
                self.found[f"{self._stage}_{what}"] = now - then
            self.found[f"{self._stage}_mib"] = self._peak()
        if self._device == GPU:
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            REFERENCES.write_text("5", encoding="ascii")  # the peak begins anew
        self._stage, self._begun = stage, _clocks(self._device)

    def _peak(self) -> float:
        if self._device == GPU:
            return torch.cuda.max_memory_allocated() / 2**20
        return max(0.0, _memory("VmHWM") - self._held)


def _clocks(device: torch.device) -> tuple[float, float]:
    """Read the clock on the wall and that of the processor, once the device has done its work."""
    if device == GPU:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _memory(name: str) -> float:
    """Read a figure of this process's memory in MiB; 0 where the system does not say."""
    with suppress(OSError):
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def figures(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a fusion took, stage by stage, and what its child is worth."""
    torch.set_num_threads(int(cell["cores"]))
    parents, images = SETS[cell["set"]], int(cell["images"])
    device = GPU if cell["processor"] == "gpu" else torch.device("cpu")
    of = read_material(parents, files_of([parents.data], {})[parents.data], device)
    calibration, held_out = drawn(of, images, 0), of.held_out(images, 0, 0)
    if calibration is None or held_out is None:
        raise RecipeError(f"--images {images}: none are left to judge children of {parents.title} by")
    layouts = layouts_of(of.inputs.models, calibration)
    example = of.inputs.data.example(device=of.inputs.device)
    recipe = Recipe.create(preset=cell["preset"], calibration=images)

    def bare() -> tuple[float, float]:
        begun = _clocks(device)
        pass_forward(of.inputs.models, calibration, layouts)
        wall, cpu = (now - then for now, then in zip(_clocks(device), begun, strict=True))
        return wall, cpu

    bare()  # what is chosen and built once is no part of it
    given = replace(of.inputs.parents(of.template), example=example)
    if device == GPU:
        fuse(given, recipe, calibration)
    passes, stages = [bare()], Stages(device)
    result = fuse(given, recipe, calibration, progress=stages.begin)
    stages.begin("evaluate")
    result.comparison(of.test(TESTED))
    stages.begin("")
    passes.append(bare())
    child = evaluate(result.child, of.test(0))
    own = [evaluate(model, of.test(0)).accuracy for model in of.inputs.models] if of.inputs.labels is None else []
    yield {
        **stages.found,
        "bare_wall": fmean(wall for wall, _ in passes),
        "bare_cpu": fmean(cpu for _, cpu in passes),
        "parents_mib": 4 * sum(parameters(model) for model in of.inputs.models) / 2**20,
        "accuracy": child.accuracy,
        "held_out_accuracy": evaluate(result.child, held_out).accuracy,
        **({"machine": torch.cuda.get_device_name()} if device == GPU else {}),
        **({"parents_accuracy": fmean(own)} if own else {}),
    }


# --- what is shown ---------------------------------------------------------------------------------


def tables(rows: pd.DataFrame) -> str:
    """One table per machine, processor and number of threads: medians over runs, a line for each set and preset."""
    heads = ["parents", "preset", "images", "bare passes, s", "refit, s", *(f"{name}, times" for name in _shown(rows))]
    heads += ["MiB of the refit", "bound", "child", "held-out"]
    parts = []
    measured = rows[rows["refused"] == ""]
    for (machine, processor, cores), own in measured.groupby(["machine", "processor", "cores"], sort=False):
        clock = "cpu" if cores == "1" and processor != "gpu" else "wall"
        lines = []
        for (name, preset, images), runs in own.groupby(["set", "preset", "images"], sort=False):
            median = runs[list(VALUES)].median()
            bare = median[f"{BARE}_{clock}"]
            line = [SETS[name].title, preset, f"{int(images):,}", f"{bare:.2f}", _text(median[f"refit_{clock}"], 1)]
            line += [_ratio(runs, stage, clock) for stage in _shown(rows)]
            bound = BOUND_TIMES * median["parents_mib"] + BOUND_MIB
            line += [_text(median["refit_mib"], 0), f"{bound:.0f}"]
            line += [_text(100 * median[column], 2) for column in ("accuracy", "held_out_accuracy")]
            lines.append(line)
        threads = "one thread, CPU seconds" if clock == "cpu" else f"{cores} threads, seconds on the wall"
        kind = KINDS[processor]
        parts.append(f"{machine}. {kind}, {threads}; medians of {_counts(own)}.\n\n{markdown(heads, lines)}")
    return "\n\n".join(parts)


def _shown(rows: pd.DataFrame) -> list[str]:
    return [stage for stage in STAGES if rows[f"{stage}_wall"].notna().any()]


def _ratio(runs: pd.DataFrame, stage: str, clock: str) -> str:
    """Show the median ratio of a stage to the bare passes of its own run."""
    return _text((runs[f"{stage}_{clock}"] / runs[f"{BARE}_{clock}"]).median(), 2)


def _text(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _counts(rows: pd.DataFrame) -> str:
    """Say how many runs a line has: `3 runs`, or `1 to 3 runs`."""
    counts = rows.groupby(["set", "preset", "images"]).size()
    least, most = int(counts.min()), int(counts.max())
    runs = "run" if most == 1 else "runs"
    return f"{most} {runs}" if least == most else f"{least} to {most} {runs}"


# --- the command -----------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--sets", nargs="+", metavar="NAME", choices=list(SETS), default=list(SETS))
    parser.add_argument("--presets", nargs="+", metavar="NAME", default=["standard"], help="standard")
    parser.add_argument("--images", metavar="N,...", help="for calibration; 2000, of digits 900")
    parser.add_argument("--processor", nargs="+", choices=list(PROCESSORS), default=["as it is"], help="as it is")
    parser.add_argument("--torch-threads", metavar="N,...", default="1", help="of each run; 1")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of which the median is shown; 1")


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs of all sets with all presets."""
    check_counts(options, runs=1)
    if unknown := [name for name in options.presets if name not in preset_names()]:
        raise RecipeError(f"there is no preset {unknown[0]!r}: choose from {', '.join(preset_names())}")
    cores = numbers("--torch-threads", options.torch_threads, 1)
    return [
        {"set": name, "preset": preset, "images": count, "processor": processor, "cores": threads, "run": run}
        for run in range(options.runs)
        for processor in options.processor
        for threads in cores
        for name in options.sets
        for preset in options.presets
        for count in _images(options.images, name)
    ]


def _images(given: str | None, name: str) -> list[int]:
    if given is not None:
        return numbers("--images", given, 2)
    return [FEW_IMAGES if SETS[name].kind == DIGITS else IMAGES]


MEASUREMENT = Measurement(
    "standard",
    __doc__,
    wanted,
    lambda _: Cells(KEYS, VALUES, measure),
    lambda rows, _: tables(rows),
    add_options,
    shown_as="speed",
)
