"""Upscalers are fused on photographs of any size: squares are cut out, and whole photographs held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_sentence
from digits_parents import digits_files
from PIL import Image

from depfuse.cli import main
from depfuse.models import build_network
from depfuse.report.strip import GAP, LABELS, TEXT

pytest.importorskip("spandrel")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two tiny upscalers, and ten photographs of sizes that differ."""
    for name in "ab":
        torch.manual_seed(ord(name))
        network = build_network("spandrel:Compact(num_feat=6, num_conv=2, upscale=2)")
        torch.save({"params_ema": network.state_dict()}, tmp_path / f"{name}.pth")
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(10):
        pixels = random.integers(0, 256, (20 + number, 34 - number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--data", str(folder)]


def test_photographs_of_any_size_are_cut(files: list[str], tmp_path: Path, capsys) -> None:
    child = tmp_path / "child.pth"
    assert main(["fuse", *files, "--preset", "fast", "--out", str(child)]) == 0
    said = capsys.readouterr().err
    assert "13 squares of 16 x 16 pixels (--crop 16) are cut out of 10 photographs" in said
    assert "1 of its 10 photographs" in said
    assert torch.load(child).keys() == {"params_ema"}


def test_a_side_or_a_size_of_the_users_own(files: list[str], tmp_path: Path, capsys) -> None:
    out = ["--preset", "fast", "--out", str(tmp_path / "child.pth")]
    assert main(["fuse", *files, "--crop", "8", *out]) == 0
    assert "84 squares of 8 x 8 pixels (--crop 8) are cut out of 10 photographs" in capsys.readouterr().err
    assert main(["fuse", *files, "--size", "12", *out]) == 0
    assert "cut out" not in capsys.readouterr().err
    code = main(["fuse", *files, "--size", "12", "--crop", "8", *out])
    assert_one_sentence(capsys, code, "--size resizes images and --crop cuts squares")


def test_pictures_agree_in_decibels(files: list[str], tmp_path: Path, capsys) -> None:
    out = ["--preset", "fast", "--out", str(tmp_path / "child.pth")]
    assert main(["fuse", *files, *out]) == 0
    table, _, verdict = capsys.readouterr().out.partition("The child is in")
    row = next(line for line in table.splitlines() if line.startswith("parent a.pth")).split()
    assert "PSNR under the ensemble" in table
    assert row[4] == "100.00"
    assert "the child has PSNR" in verdict
    # The ensemble is half way, so that a parent's distance to it is half of that to the other parent: 6.02 dB.
    assert float(row[2]) - float(row[6]) == pytest.approx(6.02, abs=0.011)


def test_a_strip_shows_one_image_along_the_path(files: list[str], tmp_path: Path, capsys) -> None:
    picture = tmp_path / "strip.png"
    out = ["--set", "refit=ridge", "--calibration", "6", "--points", "4", "--picture", str(picture)]
    assert main(["path", *files, "--crop", "16", *out]) == 0
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    height = width = 128  # squares of 16 become pictures of 32, enlarged four times
    assert pixels.shape == (TEXT + 2 * GAP + 6 * (height + GAP), LABELS + 4 * (width + GAP), 3)
    tops = [TEXT + 2 * GAP + row * (height + GAP) for row in range(6)]
    lefts = [LABELS + column * (width + GAP) for column in range(4)]
    every = [[pixels[top : top + height, left : left + width] for left in lefts] for top in tops]
    panels, differences = every[::2], every[1::2]
    for column in (0, 3):  # the parents
        assert np.array_equal(panels[0][column], panels[1][column])
        assert np.array_equal(panels[0][column], panels[2][column])
        assert not any(row[column].any() for row in differences)
    assert max(int(panel.max()) for row in differences for panel in row) == 255
    for column in (1, 2):
        assert differences[0][column].mean() > differences[2][column].mean()  # of the average, of the refitted
        assert not np.array_equal(panels[0][column], panels[2][column])
    small = panels[0][0][::4, ::4]
    assert np.array_equal(np.kron(small, np.ones((4, 4, 1), np.uint8)), panels[0][0])


def test_a_strip_of_class_scores_is_refused(tmp_path: Path, capsys) -> None:
    parents = digits_files("a", "b")
    code = main(["path", *map(str, parents), "--picture", str(tmp_path / "strip.png")])
    assert_one_sentence(capsys, code, "these give no pictures", "leave out --picture")
    code = main(["path", *map(str, parents), "--picture", str(tmp_path / "strip.jpg")])
    assert_one_sentence(capsys, code, "its name must end in .png")


def test_enlargements_that_differ_are_told_before_photographs_are_read(files: list[str], capsys) -> None:
    network = build_network("spandrel:Compact(num_feat=6, num_conv=2, upscale=4)")
    torch.save({"params_ema": network.state_dict()}, files[1])
    code = main(["fuse", *files])
    assert_one_sentence(
        capsys, code, "parents 1 and 2 are other networks: they differ in upsampler.upscale_factor (2, 4)"
    )
