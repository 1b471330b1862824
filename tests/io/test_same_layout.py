"""A child in the layout of a parent's file: its program finds the same keys, and other numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depfuse.cli import main
from depfuse.errors import CheckpointError
from depfuse.io.same_layout import layout_of, write_content
from depfuse.models import build_network
from tests.models.test_spandrel_networks import in_new_names


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor / 2 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def same(first: object, second: object) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params_ema": state},
        lambda state: {"model": {"network": {f"module.{key}": tensor for key, tensor in state.items()}}},
        lambda state: {"state_dict": {key: tensor.half() for key, tensor in state.items() if "num_" not in key}},
    ],
)
def test_the_childs_file_has_the_parents_keys(tmp_path: Path, wrap: object) -> None:
    own = network().state_dict()
    path, child = tmp_path / "parent.pth", tmp_path / "child.pth"
    torch.save({**wrap(own), **({"epoch": 3} if wrap(own).keys() != own.keys() else {})}, path)
    write_content(child, layout_of(path, None, own).content(halved(own)))
    assert same(torch.load(child), wrap(halved(own)))


def test_a_checkpoint_of_lightnings_without_settings_has_none_afterwards(tmp_path: Path) -> None:
    own = network().state_dict()
    path, child = tmp_path / "parent.ckpt", tmp_path / "child.ckpt"
    torch.save({"pytorch-lightning_version": "2.4.0", "state_dict": own, "epoch": 3}, path)
    write_content(child, layout_of(path, None, own).content(halved(own)))
    found = torch.load(child)
    assert found.keys() == {"pytorch-lightning_version", "state_dict"}
    assert same(found["state_dict"], halved(own))


def test_the_bytes_do_not_depend_on_the_files_name(tmp_path: Path) -> None:
    own = network().state_dict()
    for name in ("a.pth", "another name.pth"):
        write_content(tmp_path / name, own)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "another name.pth").read_bytes()


def test_a_chosen_set_is_written_alone(tmp_path: Path) -> None:
    own = network().state_dict()
    path = tmp_path / "parent.pth"
    torch.save({"params": halved(own), "params_ema": own}, path)
    assert layout_of(path, "params", own).content(own).keys() == {"params"}
    assert layout_of(path, None, own).content(own).keys() == {"params_ema"}


def test_tensors_in_another_form_are_refused(tmp_path: Path) -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    old = {"bias": normed.bias, "weight_g": normed.parametrizations.weight.original0}
    old["weight_v"] = normed.parametrizations.weight.original1
    path = tmp_path / "parent.pth"
    torch.save({key: tensor.detach() for key, tensor in old.items()}, path)
    layout = layout_of(path, None, normed.state_dict())  # renamed, and the same tensors
    assert layout.content(normed.state_dict()).keys() == old.keys()
    other = {**normed.state_dict(), "bias": torch.zeros(5)}
    with pytest.raises(CheckpointError, match="bias is in another form than in the network"):
        layout_of(path, None, other)


@pytest.fixture
def upscalers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two upscalers by nearest neighbours, with the names of Real-ESRGAN, and photographs."""
    pytest.importorskip("spandrel")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        made = build_network("spandrel:ESRGAN(num_filters=8, num_blocks=2, scale=2)").state_dict()
        torch.save({"params_ema": {key: tensor.half() for key, tensor in made.items()}}, f"{name}.pth")
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 3), dtype=np.uint8)
    for number, own in enumerate(pixels):
        Image.fromarray(own).resize((16, 16), Image.Resampling.BICUBIC).save(f"photos/{number}.png")
    return tmp_path


def test_upscalers_are_fused_from_their_files_alone(upscalers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fuse", "a.pth", "b.pth", "--data", "photos", "--preset", "fast", "--task", "regression"]
    assert main([*arguments, "--calibration", "32", "--out", "c.pth"]) == 0
    said = "The child is in c.pth, a spandrel:ESRGAN(num_filters=8, num_blocks=2, scale=2), in the layout of a.pth."
    assert said in capsys.readouterr().out
    parent, child = (torch.load(f"{name}.pth") for name in "ac")
    assert child.keys() == {"params_ema"}
    assert child["params_ema"].keys() == parent["params_ema"].keys()
    assert all(own.dtype == torch.float16 for own in child["params_ema"].values())
    assert not same(parent, child)
    descriptor = pytest.importorskip("spandrel").ModelLoader().load_from_file("c.pth")
    assert descriptor.scale == 2


def test_files_of_a_newer_version_keep_their_names(upscalers: Path) -> None:
    for name in "ab":
        state = build_network("spandrel:ESRGAN(num_filters=8, num_blocks=2)").state_dict()
        torch.save({"params": in_new_names(state)}, f"{name}.pth")
    arguments = ["fuse", "a.pth", "b.pth", "--data", "photos", "--preset", "fast", "--task", "regression"]
    assert main([*arguments, "--calibration", "32", "--out", "c.pth"]) == 0
    assert torch.load("c.pth")["params"].keys() == torch.load("a.pth")["params"].keys()


def test_a_file_that_is_not_recognised_needs_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pth"
    torch.save(network().state_dict(), path)
    assert main(["fuse", str(path), str(path), "--data", "digits"]) == 2
    assert f"{path} does not say what network it is: give --arch" in capsys.readouterr().err
