from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from depfuse.data import DataSet, Loader, Preprocessing
from depfuse.errors import CheckpointError
from depfuse.evaluate import evaluate
from depfuse.io.atomic_files import check_writable
from depfuse.io.cards import Card, Parent
from depfuse.io.checkpoint import read_checkpoint, state_digest, write_checkpoint
from depfuse.io.into_network import load_into, load_network
from depfuse.io.versions import library_versions
from depfuse.models import build_network

ARCH = "digits_resnet(width=0.25)"


@pytest.fixture
def network() -> nn.Module:
    return build_network(ARCH)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_what_was_written_is_read_back_with_its_card(tmp_path: Path, network: nn.Module) -> None:
    card = Card(
        architecture=ARCH,
        data="digits",
        preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)),
        classes=(0, 1, 2),
        recipe={"solver": "emd", "nested": {"a": [1, 2]}},
        seeds={"init": 3},
        parents=(Parent(path="a.safetensors", digest="00"),),
        metrics={"accuracy": 0.5},
    )
    digest = write_checkpoint(tmp_path / "net.safetensors", network.state_dict(), card)
    read = read_checkpoint(tmp_path / "net.safetensors")
    assert same(read.state, network.state_dict())
    assert read.card == Card(**{**card.model_dump(), "versions": library_versions(), "tensors": digest})
    assert read.digest == digest == state_digest(network.state_dict())
    assert read.card.versions["torch"] == torch.__version__
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_headers_of_any_length_are_told_from_pickles_and_archives(tmp_path: Path) -> None:
    """A header of 1408 bytes makes the first byte 0x80, as a pickle's is; one of 19280 bytes begins with PK."""
    path, firsts = tmp_path / "net.safetensors", set()
    for length in (*range(600, 1000, 8), *range(19280 - 480, 19280, 8)):
        write_checkpoint(path, {"weight": torch.ones(2)}, Card(architecture="x" * length))
        firsts.add(path.read_bytes()[:2])
        card = read_checkpoint(path).card
        assert card is not None
        assert card.architecture == "x" * length
    assert b"PK" in firsts
    assert any(first.startswith(b"\x80") for first in firsts)


def test_the_same_network_gives_the_same_file(tmp_path: Path, network: nn.Module) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, network.state_dict(), Card(architecture=ARCH))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    write_checkpoint(tmp_path / "tied", {"a": weight, "b": weight, "c": weight.T}, Card(architecture="x"))
    assert torch.equal(read_checkpoint(tmp_path / "tied").state["c"], weight.T)


@pytest.mark.parametrize("nesting", [(), ("state_dict",), ("model_state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("legacy", [False, True])
def test_common_files_are_read(
    tmp_path: Path, network: nn.Module, nesting: tuple[str, ...], prefix: str, legacy: bool
) -> None:
    state = network.state_dict()
    saved: object = {prefix + key: value for key, value in state.items()}
    for key in reversed(nesting):
        saved = {key: saved, "epoch": 3, "best": np.float64(91.5)}
    torch.save(saved, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(tmp_path / "net.pth").state, state)


def test_plain_safetensors_have_no_card(tmp_path: Path, network: nn.Module) -> None:
    safetensors.torch.save_file(network.state_dict(), tmp_path / "net.bin")
    read = read_checkpoint(tmp_path / "net.bin")
    assert read.card is None
    assert same(read.state, network.state_dict())


def test_a_network_is_what_its_card_says(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    original = build_network(ARCH, classes=3, in_channels=2)
    write_checkpoint(path, original.state_dict(), Card(architecture=ARCH, classes=(4, 5, 6)))
    found = load_network(path, in_channels=2)
    assert same(found.state_dict(), original.state_dict())
    assert not found.training
    safetensors.torch.save_file(original.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"net\.safetensors does not say what network it is: name it"):
        load_network(path)


def test_shipped_parents_reach_what_their_cards_say(digits: DataSet) -> None:
    files = sorted((Path(__file__).resolve().parents[2] / "checkpoints").glob("digits*.safetensors"))
    assert len(files) >= 4
    for file in files:
        assert file.stat().st_size < 150_000
        read = read_checkpoint(file)
        assert read.card.preprocessing == digits.preprocessing
        scores = evaluate(load_network(file), Loader(digits.test, digits.preprocessing, batch_size=500))
        assert scores.accuracy == pytest.approx(read.card.metrics["accuracy"], abs=0.0021), file.name


@pytest.mark.parametrize(
    ("folder", "pattern", "arch"),
    [
        ("mnist-simplenet", "example_model_fusion_?.dat", "simplenet.py:simplenet"),
        ("cifar10-resnet20", "*.th", "cifar_resnet_a.py:resnet20"),
        ("cifar10-resnet56", "*.th", "cifar_resnet_a.py:resnet56"),
        ("cifar10-resnet20-halves", "*.pt", "cifar_resnet_a.py:resnet20(classes=5)"),
    ],
)
def test_other_peoples_networks_load(shared: Path, folder: str, pattern: str, arch: str) -> None:
    files = sorted((shared / "checkpoints" / folder).glob(pattern))
    assert len(files) >= 2
    network = build_network(f"{shared}/models/{arch}")
    for file in files:
        load_into(network, read_checkpoint(file))


def test_num_batches_tracked_may_be_missing(tmp_path: Path, network: nn.Module) -> None:
    state = {key: value + 1 for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "net.pt")
    load_into(network, read_checkpoint(tmp_path / "net.pt"))
    assert same({key: network.state_dict()[key] for key in state}, state)


def test_half_precision_is_converted(tmp_path: Path, network: nn.Module) -> None:
    torch.save(
        {key: v.half() if v.is_floating_point() else v for key, v in network.state_dict().items()},
        tmp_path / "h",
    )
    before = network.linear.weight.detach().clone()
    load_into(network, read_checkpoint(tmp_path / "h"))
    assert network.linear.weight.dtype == torch.float32
    assert torch.equal(network.linear.weight, before.half().float())


def test_a_network_whose_own_names_begin_with_module_loads(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    wrapped = Wrapped()
    torch.save(wrapped.state_dict(), tmp_path / "w.pt")
    other = Wrapped()
    load_into(other, read_checkpoint(tmp_path / "w.pt"))
    assert torch.equal(other.module.weight, wrapped.module.weight)


class RunsCode:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_not_run_and_its_tensors_are_read(tmp_path: Path, how: str, protocol: int) -> None:
    trap = tmp_path / "trap"
    content = {"state_dict": {"weight": torch.arange(2.0)}, "extra": RunsCode(trap)}
    file = tmp_path / "net.pth"
    if how == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "torch")
    assert read_checkpoint(file).state["weight"].tolist() == [0, 1]
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, network: nn.Module, kind: str, part: float) -> None:
    file = tmp_path / "net"
    if kind == "safetensors":
        write_checkpoint(file, network.state_dict(), Card(architecture=ARCH))
    else:
        torch.save(network.state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError, match=r"damaged or cut off|no checkpoint|is empty") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_cut_off_is_not_taken_for_another(tmp_path: Path, network: nn.Module) -> None:
    file = tmp_path / "net.pt"
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    start = whole.index(b"_rebuild_tensor_v2")
    for end in (start + 5, start + len(b"_rebuild_tensor_v2")):
        file.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"just some text, longer than a header", "is no checkpoint"),
        (b"PK\x03\x04 not a zip archive at all", "damaged or cut off"),
        (b"\x80\x02}q\x00.", "holds no tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(tmp_path / "net.pt")


def test_folders_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint file, and has no file of weights"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(("content", "sentence"), [([1, 2], "holds a list"), ({"epoch": 3}, "holds no tensors")])
def test_a_file_without_weights_is_named(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(tmp_path / "net.pt")


def rewrite(path: Path, change: str) -> None:
    """Change one thing about a written checkpoint and leave its card as it was."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if change == "tensors":
        state["linear.bias"] = state["linear.bias"] + 1
    elif change == "unknown field":
        metadata["depfuse_card"] = metadata["depfuse_card"].replace("{", '{"from the future": 1, ', 1)
    else:
        metadata["depfuse_card"] = change
    safetensors.torch.save_file(state, path, metadata)


def test_a_card_that_contradicts_its_tensors_is_refused(tmp_path: Path, network: nn.Module) -> None:
    write_checkpoint(tmp_path / "net", network.state_dict(), Card(architecture=ARCH))
    rewrite(tmp_path / "net", "tensors")
    with pytest.raises(CheckpointError, match="the card belongs to other weights"):
        read_checkpoint(tmp_path / "net")


def test_unknown_fields_of_a_card_are_ignored(tmp_path: Path, network: nn.Module) -> None:
    write_checkpoint(tmp_path / "net", network.state_dict(), Card(architecture=ARCH))
    rewrite(tmp_path / "net", "unknown field")
    assert read_checkpoint(tmp_path / "net").card.architecture == ARCH


@pytest.mark.parametrize("card", ["{", "{}", '{"architecture": 5}'])
def test_a_broken_card_is_one_sentence(tmp_path: Path, network: nn.Module, card: str) -> None:
    write_checkpoint(tmp_path / "net", network.state_dict(), Card(architecture=ARCH))
    rewrite(tmp_path / "net", card)
    with pytest.raises(CheckpointError, match="its card cannot be read"):
        read_checkpoint(tmp_path / "net")


def nan(state: dict[str, Tensor]) -> None:
    state["linear.weight"][0, 0] = float("nan")


def infinite(state: dict[str, Tensor]) -> None:
    state["bn1.running_var"][0] = float("inf")


def missing(state: dict[str, Tensor]) -> None:
    del state["linear.bias"]


def extra(state: dict[str, Tensor]) -> None:
    state["linear2.bias"] = torch.zeros(3)


def reshaped(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = torch.zeros(9, 1, 3, 3)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (nan, "linear.weight is not finite"),
        (infinite, "bn1.running_var is not finite"),
        (missing, "does not fit DigitsResNet: linear.bias is missing"),
        (extra, "linear2.bias is left over"),
        (reshaped, r"conv1.weight has shape \(9, 1, 3, 3\) there and \(4, 1, 3, 3\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    tmp_path: Path, network: nn.Module, break_it: object, sentence: str
) -> None:
    state = {key: value.clone() for key, value in network.state_dict().items()}
    break_it(state)
    torch.save(state, tmp_path / "net.pt")
    other = build_network(ARCH)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        load_into(other, read_checkpoint(tmp_path / "net.pt"))
    assert same(before, other.state_dict())


def test_paths_that_cannot_be_written_are_named(tmp_path: Path, network: nn.Module) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path, tmp_path / "file" / "net.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            check_writable(path)
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_checkpoint(path, network.state_dict(), Card(architecture=ARCH))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_device_or_pipe_is_not_replaced_by_a_file(tmp_path: Path, network: nn.Module) -> None:
    pipe, link = tmp_path / "pipe.safetensors", tmp_path / "link.safetensors"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    for path in (pipe, link, Path(os.devnull)):
        with pytest.raises(CheckpointError, match="cannot be written: it is a device or a pipe"):
            check_writable(path)
        with pytest.raises(CheckpointError, match="cannot be written: it is a device or a pipe"):
            write_checkpoint(path, network.state_dict(), Card(architecture=ARCH))
    assert pipe.is_fifo()
    assert link.is_char_device()


def test_a_link_is_followed(tmp_path: Path, network: nn.Module) -> None:
    (tmp_path / "storage").mkdir()
    link = tmp_path / "net.safetensors"
    for file in ("new", "there"):
        place = tmp_path / "storage" / file
        link.unlink(missing_ok=True)
        link.symlink_to(place)
        check_writable(link)
        write_checkpoint(link, network.state_dict(), Card(architecture=ARCH))
        write_checkpoint(link, network.state_dict(), Card(architecture=ARCH))
        assert link.is_symlink()
        assert same(read_checkpoint(place).state, network.state_dict())
    assert sorted(entry.name for entry in (tmp_path / "storage").iterdir()) == ["new", "there"]


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "net.safetensors")
    check_writable(tmp_path / "new" / "folder" / "net.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_leaves_the_old_file(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.safetensors"
    digest = write_checkpoint(file, network.state_dict(), Card(architecture=ARCH))

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_checkpoint(file, build_network(ARCH).state_dict(), Card(architecture=ARCH))
    assert read_checkpoint(file).digest == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]
