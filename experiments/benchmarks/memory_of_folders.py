"""Measure the peak memory of calibrating from and evaluating on a folder: it does not grow with the number of images.

    python -m experiments run memory_of_folders [PHOTOGRAPHS ...]

Each number of generated photographs of 400 x 300 is measured in a process of its own, on 100 calibration images.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from depfuse.data import calibration_loader, load_data
from depfuse.data.stream import batches_of

NUMBERS = (200, 20_000)
CALIBRATION = 100
DIFFERENT = 50  # photographs; the others are links to them, which are read like files


def write(folder: Path, count: int) -> None:
    """Write photographs into a folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{number:06d}.jpg"
        if number < DIFFERENT:
            coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((400, 300), Image.Resampling.BICUBIC).save(place)
        else:
            place.symlink_to(folder / f"{number % DIFFERENT:06d}.jpg")


def peak(folder: Path) -> float:
    """Read a folder, draw calibration images and pass over 2,000 of it; return the peak memory in MiB."""
    data = load_data(folder)
    calibration = calibration_loader(data, CALIBRATION, batch_size=50)
    total = sum(float(images.sum()) for images, _ in calibration)
    for images, _ in batches_of(data.train.take(slice(0, 2000)), data.preprocessing, batch_size=50):
        total += float(images.sum())
    assert np.isfinite(total)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str]) -> None:
    """Measure each number of photographs in a process of its own."""
    if arguments[:1] == ["--here"]:
        torch.set_num_threads(1)
        print(f"{peak(Path(arguments[1])):.0f}")
        return
    for count in map(int, arguments or NUMBERS):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count)
            command = [sys.executable, "-m", "experiments.benchmarks.memory_of_folders", "--here", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{count:7,} photographs: {done.stdout.strip()} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
