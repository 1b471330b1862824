"""Networks as users' files build them: of another precision, compiled, and beside what a script sets for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import NETWORK, Place, trust

from depfuse.cli import main
from depfuse.errors import CheckpointError
from depfuse.io.load import load
from depfuse.models import build_network
from tests.conftest import assert_one_sentence


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def child_of(place: Place, source: str) -> dict[str, torch.Tensor]:
    """Fuse by a network of other source, quietly."""
    (place.folder / "own.py").write_text(f"{NETWORK}\n{source}\n")
    assert place.fuse("--arch", f"{place.folder / 'own.py'}:own") == 0
    return load_file(place.folder / "child.safetensors")


FACTORIES = {
    "double": "def own():\n    return tiny().double()",
    "half": "def own():\n    return tiny().half()",
    "mixed": "def own():\n    network = tiny().bfloat16()\n    network[1].float()\n    return network",
    "compiled": "def own():\n    return torch.compile(tiny())",
    "a script of float64": "torch.set_default_dtype(torch.float64)\nown = tiny",
    "a script of another device": "torch.set_default_device('meta')\ntorch.set_grad_enabled(False)\nown = tiny",
    "a function of another type": "def own():\n    torch.set_default_dtype(torch.float64)\n    return tiny()",
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_child_is_that_of_the_plain_network(place: Place, name: str) -> None:
    assert place.fuse() == 0
    wanted = load_file(place.folder / "child.safetensors")
    found = child_of(place, FACTORIES[name])
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[key], msg=key)
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.is_grad_enabled()


def test_a_network_of_another_precision_is_trained_and_evaluated(place: Place, capsys) -> None:
    (place.folder / "own.py").write_text(f"{NETWORK}\n{FACTORIES['double']}\n")
    arch, out = f"{place.folder / 'own.py'}:own", str(place.folder / "new.safetensors")
    assert main(["train", arch, "--data", str(place.data), "--epochs", "1", "--out", out]) == 0
    assert main(["eval", out, *trust(out)]) == 0


def test_a_network_without_room_for_weights_is_one_sentence(place: Place, capsys) -> None:
    (place.folder / "own.py").write_text(
        f"{NETWORK}\ndef own():\n    with torch.device('meta'):\n        return tiny()\n"
    )
    arch = f"{place.folder / 'own.py'}:own"
    assert_one_sentence(capsys, place.fuse("--arch", arch), "Sequential has no room for weights", "build it on the CPU")
    with pytest.raises(CheckpointError, match="Sequential has no room for weights"):
        load(place.parents[0], arch)


def test_a_factory_that_gives_no_network_is_one_sentence(place: Place, capsys) -> None:
    assert_one_sentence(capsys, place.fuse("--arch", f"{place.folder / 'nets.py'}:number"), "number gave an int, not")


def test_a_default_device_of_the_callers_stays() -> None:
    with torch.device("meta"):
        build_network("digits_resnet(width=0.25)")
        assert torch.get_default_device() == torch.device("meta")
    assert torch.get_default_device() == torch.device("cpu")
