"""Upscalers are recognised by their tensors, and built again by what was recognised."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depfuse.errors import ArchitectureError
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.recognising import recognised, recognised_architecture
from depfuse.io.same_layout import layout_of
from depfuse.models import build_network
from depfuse.models.origin import FromFile
from depfuse.models.spandrel_networks import recognise

spandrel = pytest.importorskip("spandrel")


def esrgan() -> nn.Module:
    return build_network("spandrel:ESRGAN(num_filters=8, num_blocks=2)")


def in_new_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an ESRGAN of two blocks as Real-ESRGAN has them."""
    names = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    layers = dict(zip(["0", "1.sub.2", "3", "6", "8", "10"], names, strict=True))
    renamed = {}
    for key, tensor in state.items():
        inner = re.sub(r"model\.1\.sub\.(\d)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3.", key)
        outer = re.sub(r"model\.([\d.]+(?:sub\.\d)?)\.(weight|bias)", lambda m: f"{layers[m[1]]}.{m[2]}", inner)
        renamed[outer] = tensor
    return renamed


@pytest.mark.parametrize(
    "architecture",
    [
        "spandrel:Compact(num_feat=12, num_conv=3, upscale=2)",
        "spandrel:ESRGAN(num_filters=8, num_blocks=2)",
        "spandrel:SPAN(feature_channels=8, upscale=2, num_in_ch=3, num_out_ch=3)",
        "spandrel:RealCUGAN.UpCunet2x(scale=2, fast=False)",
    ],
)
def test_what_is_recognised_builds_the_same_network(architecture: str) -> None:
    network = build_network(architecture, classes=10, in_channels=3).eval()
    found = recognise(network.state_dict())
    assert found is not None
    assert found.architecture == architecture
    assert isinstance(found.architecture, FromFile)
    again = build_network(found.architecture, fitting=network.state_dict()).eval()
    again.load_state_dict(found.state)
    images = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_tensors_of_another_version_are_found_by_their_places() -> None:
    network = esrgan()
    state = in_new_names(network.state_dict())
    found = recognise(state)
    assert found is not None
    assert found.architecture == "spandrel:ESRGAN(num_filters=8, num_blocks=2)"
    assert found.names.keys() == network.state_dict().keys()
    for name, key in found.names.items():
        assert torch.equal(network.state_dict()[name], state[key]), name


@pytest.mark.parametrize("rename", [lambda state: state, in_new_names])
def test_a_file_is_recognised_once_whatever_is_asked_of_it(
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = esrgan()
    path = tmp_path / "upscaler.pth"
    torch.save(rename(network.state_dict()), path)
    asked: list[int] = []
    load = spandrel.MAIN_REGISTRY.load
    monkeypatch.setattr(spandrel.MAIN_REGISTRY, "load", lambda state: asked.append(1) or load(state))
    assert recognised_architecture(path) == "spandrel:ESRGAN(num_filters=8, num_blocks=2)"
    read = recognised(read_checkpoint(path))
    assert layout_of(path, None, network.state_dict()).keys.keys() == network.state_dict().keys()
    assert asked == [1]
    assert all(
        torch.equal(read.fitted_to(network.state_dict()).state[key], own) for key, own in network.state_dict().items()
    )
    torch.save(rename(esrgan().state_dict()), path)
    assert recognised(read_checkpoint(path)).digest != read.digest
    assert asked == [1, 1]


def test_random_numbers_of_the_process_stay() -> None:
    state = esrgan().state_dict()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert recognise(state) is not None
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 5, 3))}),  # Compact's names
    ],
)
def test_other_networks_are_not_recognised(network: nn.Module) -> None:
    assert recognise(network.state_dict()) is None


def test_a_network_larger_than_its_tensors_is_not_built() -> None:
    """Compact's number of layers is the largest number in a name."""
    state = build_network("spandrel:Compact(num_feat=12, num_conv=3, upscale=2)").state_dict()
    last = max(int(key.split(".")[1]) for key in state)
    far = {key.replace(f"body.{last}.", "body.4000000."): tensor for key, tensor in state.items()}
    with pytest.raises(ArchitectureError, match="far larger than the tensors"):
        recognise(far)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"spandrel has no network ESGRAN: did you mean ESRGAN"):
        build_network("spandrel:ESGRAN")
    with pytest.raises(ArchitectureError, match=r"spandrel has no network Compact\.os"):
        build_network("spandrel:Compact.os")
    with pytest.raises(ArchitectureError, match=r"may fetch or read other files"):
        build_network(FromFile("spandrel:Compact(cache_dir='/')"))
