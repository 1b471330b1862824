"""Peak memory of reading, evaluating and fusing from large data: it does not grow with the number of images.

    python -m experiments run memory_of_folders --threads 1

Half an hour and 2 GB of temporary files. Photographs of 400 x 300 are generated: in one folder without labels, in a
folder for each of ten classes, as a list of files, and as one array of 64 x 64 (.npy, and .npz of floats). Each is read
in a process of its own: 100 calibration images are drawn and 2,000 are passed over (`read`), or two ResNets of random
weights are fused from it by `depfuse fuse --size 64,64 --calibration 100`, with the recipes `fast` and `standard`. All
are in batches of 20: the test images of 200 photographs are no more. The last line of each table, `of 200`, is the
memory at the largest number as a multiple of that at the smallest. Seconds are those of a machine with other work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from depfuse.cli import main as depfuse
from depfuse.data import calibration_loader, load_data
from depfuse.data.stream import batches_of
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.models import build_network
from experiments.lib.cells import Cells
from experiments.lib.command import numbers
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import apart, whole
from experiments.lib.parents.trained import thin_resnet
from experiments.lib.processes import CellError
from experiments.lib.tables import markdown

KEYS = ("layout", "step", "photographs")
VALUES = ("peak_mib", "seconds")
LAYOUTS = ("folder", "classes", "list", "array", "floats")
STEPS = ("read", "fast", "standard")
NUMBERS = (200, 20_000)
CLASSES = 10
DIFFERENT = 200  # photographs; each is written many times
CALIBRATION = 100
BATCH = 20
PASSED = 2_000
SIDE = 64
ARCHITECTURE = thin_resnet(1, 0.5, in_channels=3)


def write(layout: str, folder: Path, count: int) -> Path:
    """Write photographs, and return what `--data` is given."""
    if layout in ("array", "floats"):
        return _write_array(layout, folder, count)
    contents = [_as_jpeg(photograph) for photograph in _photographs((400, 300))]
    lines = []
    for number in range(count):
        name = f"{number % CLASSES}/{number:06d}.jpg" if layout == "classes" else f"{number:06d}.jpg"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(contents[number % DIFFERENT])
        lines.append(name)
    if layout != "list":
        return folder
    (folder / "photographs.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "photographs.txt"


def _write_array(layout: str, folder: Path, count: int) -> Path:
    path = folder / "photographs.npy"
    pixels = np.stack([np.asarray(photograph, np.uint8) for photograph in _photographs((SIDE, SIDE))])
    if layout == "floats":
        pixels = np.divide(pixels, np.float32(255))
    array = np.lib.format.open_memmap(path, "w+", pixels.dtype, (count, SIDE, SIDE, 3))
    for start in range(0, count, DIFFERENT):
        array[start : start + DIFFERENT] = pixels[: count - start]
    array.flush()
    if layout == "array":
        return path
    np.savez(folder / "photographs.npz", photographs=array)
    path.unlink()
    return folder / "photographs.npz"


def _photographs(size: tuple[int, int]) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (DIFFERENT, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in coarse]


def _as_jpeg(photograph: Image.Image) -> bytes:
    file = io.BytesIO()
    photograph.save(file, "JPEG")
    return file.getvalue()


def measure(cell: Mapping[str, Any]) -> dict[str, float]:
    """Measure a cell in a process of its own, on photographs that are written before and removed after."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "data").mkdir()
        data = write(cell["layout"], root / "data", int(cell["photographs"]))
        return whole(apart(figures, cell["step"], data, root))


def figures(step: str, data: Path, folder: Path) -> Iterator[dict[str, float]]:
    """Yield the peak memory of this process, in MiB, and its seconds."""
    started = time.perf_counter()
    if step == "read":
        _read(data)
    else:
        _fuse(data, folder, step)
    yield {"peak_mib": _peak(), "seconds": time.perf_counter() - started}


def _read(path: Path) -> None:
    data = load_data(path, size=(SIDE, SIDE))
    total = sum(float(images.sum()) for images, _ in calibration_loader(data, CALIBRATION, batch_size=BATCH))
    for images, _ in batches_of(data.train.take(slice(0, PASSED)), data.preprocessing, batch_size=BATCH):
        total += float(images.sum())
    assert np.isfinite(total)


def _fuse(data: Path, folder: Path, preset: str) -> None:
    parents = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build_network(ARCHITECTURE, classes=CLASSES)
        parents.append(str(folder / f"{seed}.safetensors"))
        write_checkpoint(parents[-1], network.state_dict(), Card(architecture=ARCHITECTURE))
    words = ["fuse", *parents, "--arch", ARCHITECTURE, "--data", str(data), "--size", f"{SIDE},{SIDE}"]
    words += ["--recipe", preset, "--calibration", str(CALIBRATION), "--set", f"calibration.batch_size={BATCH}"]
    words += ["--quiet", "--out", str(folder / "a.safetensors")]
    with contextlib.redirect_stdout(sys.stderr):
        code = depfuse(words)
    if code:
        raise CellError(f"depfuse {' '.join(words)} ended with {code}")


def _peak() -> float:
    """Read the peak of this process's memory in MiB; the one of `getrusage` begins with that of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def tables(rows: pd.DataFrame) -> str:
    """One table of MiB: layouts and steps across, numbers of photographs down, and the ratio of the last and first."""
    parts = []
    counts = sorted(set(map(int, rows["photographs"])))
    for layout in [layout for layout in LAYOUTS if layout in set(rows["layout"])]:
        own = rows[rows["layout"] == layout].assign(count=lambda table: table["photographs"].astype(int))
        peaks = own.pivot(index="count", columns="step", values="peak_mib")
        seconds = own.pivot(index="count", columns="step", values="seconds")
        steps = [step for step in STEPS if step in peaks]
        lines = [
            [f"{count:,}", *(f"{peaks[step].get(count, np.nan):.0f}" for step in steps)]
            + [f"{seconds[step].get(count, np.nan):.0f}" for step in steps]
            for count in counts
        ]
        if len(counts) > 1:
            ratios = [peaks[step].get(counts[-1], np.nan) / peaks[step].get(counts[0], np.nan) for step in steps]
            lines.append([f"of {counts[0]:,}", *(f"{ratio:.2f}" for ratio in ratios), *("" for _ in steps)])
        heads = [layout, *(f"{step}, MiB" for step in steps), *(f"{step}, s" for step in steps)]
        parts.append(markdown(heads, lines))
    return "\n\n".join(parts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--photographs", metavar="N,...", default=",".join(map(str, NUMBERS)))
    parser.add_argument("--layouts", nargs="+", metavar="NAME", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--steps", nargs="+", metavar="NAME", choices=STEPS, default=list(STEPS))


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All steps from all layouts of all numbers of photographs."""
    return [
        {"layout": layout, "step": step, "photographs": count}
        for layout in options.layouts
        for step in options.steps
        for count in numbers("--photographs", options.photographs, 2)
    ]


MEASUREMENT = Measurement(
    "memory_of_folders",
    __doc__,
    wanted,
    lambda _: Cells(KEYS, VALUES, measure),
    lambda rows, _: tables(rows),
    add_options,
)
