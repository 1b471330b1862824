"""Reading a file runs no code, opens no other file, fetches nothing, and takes no memory that the file is not worth."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from conftest import assert_one_sentence
from digits_parents import digits_files
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from depfuse.cli import main
from depfuse.data import load_data
from depfuse.errors import ArchitectureError, CheckpointError, DataError, DepfuseWarning, RecipeError, StudyError
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into, load_network
from depfuse.models import build_network
from depfuse.models.bounded import build_bounded
from depfuse.models.origin import FromFile
from depfuse.recipe.presets import read_settings
from depfuse.report import read_report
from depfuse.report.page.runs import find_runs
from depfuse.study.objective import RESULT
from depfuse.study.records import record_of
from depfuse.study.storage import WORKER, FileStorage
from depfuse.text import readable, storable

ARCH = "digits_resnet(width=1.25)"
FEW = ["--calibration", "50", "--batch-size", "25", "--refit", "none"]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran.txt"


def with_card(path: Path, **changes: object) -> Path:
    """A shipped checkpoint whose card says something else."""
    with safe_open(digits_files("same-a")[0], "pt") as file:
        card = json.loads(file.metadata()["depfuse_card"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata={"depfuse_card": json.dumps({**card, **changes})})
    return path


def own_file(folder: Path, marker: Path) -> Path:
    """A Python file that builds the network of the shipped checkpoints, and leaves a mark when it is run."""
    file = folder / "nets.py"
    lines = (
        f"open({str(marker)!r}, 'w').close()",
        "from depfuse.models import build_network",
        f"def net():\n    return build_network({ARCH!r})",
    )
    file.write_text("\n".join(lines))
    return file


# Cards


@pytest.mark.parametrize(
    "arch",
    [
        "os:system(command='touch MARKER')",
        "subprocess:getoutput(cmd='touch MARKER')",
        'builtins:exec(source=\'open("MARKER", "w")\')',
        "nets.py:net",
        "./nets.py:net",
        "FOLDER/nets.py:net",
        "FOLDER/link.py:net",
        "nets:net",
        "torch:hub.load(repo_or_dir='x/y', model='z')",
        "torch:load(f='MARKER')",
        "torchvision.datasets:MNIST(root='FOLDER', download=True)",
        "torchvision:__init__",
        "timm.models:create_model(model_name='resnet18', pretrained=True)",
        "timm:hf-hub:depfuse",
        "__builtins__",
        " os :system(command='touch MARKER')",
    ],
)
def test_what_a_card_names_is_shown_and_not_run(
    tmp_path: Path, marker: Path, arch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.py").symlink_to(own_file(tmp_path, marker))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arch = arch.replace("MARKER", str(marker)).replace("FOLDER", str(tmp_path))
    path = with_card(tmp_path / "evil.safetensors", architecture=arch)
    before = set(sys.modules)
    assert_one_sentence(capsys, main(["eval", str(path), "--data", "digits"]), "evil.safetensors")
    for attempt in (lambda: load_network(path), lambda: build_network(read_checkpoint(path).card.architecture)):
        with pytest.raises(ArchitectureError):
            attempt()
    assert not marker.exists()
    assert not {"nets", "link"} & (set(sys.modules) - before)


@pytest.mark.parametrize("command", ["eval", "fuse", "match", "path", "tune"])
def test_no_command_runs_it_until_the_user_says_so(
    tmp_path: Path, marker: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = f"{own_file(tmp_path, marker)}:net"
    path = with_card(tmp_path / "evil.safetensors", architecture=arch)
    given = [command, digits_files("same-b")[0], str(path), "--data", "digits"]
    out = {"fuse": ["--out", str(tmp_path / "c.safetensors")], "tune": ["--out", str(tmp_path / "tune")]}
    assert_one_sentence(capsys, main([*given, *out.get(command, [])]), f"is {arch}", "--arch", f"--trust {path}")
    assert not marker.exists()


def test_the_users_own_words_run_it(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = f"{own_file(tmp_path, marker)}:net"
    path = with_card(tmp_path / "mine.safetensors", architecture=arch)
    assert main(["eval", str(path), "--data", "digits", "--arch", ARCH]) == 0
    assert not marker.exists()  # what the user says comes before the card
    for words in (["--arch", arch], ["--trust", str(path)], ["--trust", f"{tmp_path}/./mine.safetensors"]):
        marker.unlink(missing_ok=True)
        assert main(["eval", str(path), "--data", "digits", *words]) == 0
        assert "99." in capsys.readouterr().out
        assert marker.exists()
    marker.unlink()
    assert not load_network(path, trust=True).training
    assert marker.exists()
    assert_one_sentence(capsys, main(["eval", str(path), "--trust", "b.pt"]), "--trust b.pt is none of the files")


def test_a_child_of_the_users_own_network_is_evaluated_by_his_word(tmp_path: Path, marker: Path, capsys) -> None:
    arch, child = f"{own_file(tmp_path, marker)}:net", tmp_path / "child.safetensors"
    parents = digits_files("same-a", "same-b")
    assert main(["fuse", *parents, "--arch", arch, "--data", "digits", *FEW, "-q", "--out", str(child)]) == 0
    assert read_checkpoint(child).card.architecture == arch
    capsys.readouterr()
    assert_one_sentence(capsys, main(["eval", str(child)]), "--arch", "--trust")
    assert main(["eval", str(child), "--arch", arch]) == main(["eval", str(child), "--trust", str(child)]) == 0


def test_changed_words_of_a_file_are_still_the_files() -> None:
    from depfuse.models.architecture import with_arguments, with_classes

    for changed in (with_classes(FromFile("os:system(classes=3)"), 4), with_arguments(FromFile("os:system"), width=2)):
        with pytest.raises(ArchitectureError, match="code of somebody's own"):
            build_network(changed)


@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        ("torchvision:resnet18(weights='DEFAULT')", "may fetch or read other files"),
        ("torchvision:resnet18(pretrained=True)", "may fetch or read other files"),
        ("torchvision:fcn_resnet50(weights_backbone='DEFAULT')", "may fetch or read other files"),
        ("timm:resnet18(pretrained=True)", "may fetch or read other files"),
        ("timm:resnet18(model_name='hf-hub:a/b')", "may fetch or read other files"),
        ("timm:resnet18(checkpoint_path='x.pth')", "may fetch or read other files"),
        ("timm:resnet18(pretrained_cfg={'file': 'x.pth'})", "may fetch or read other files"),
        ("timm:resnet18(cache_dir='x')", "may fetch or read other files"),
        ("timm:resnet18(act_layer='../x')", "no plain value"),
        ("timm:resnet18(block_args={'a': 1})", "no plain value"),
        ("digits_resnet(width=1e9)", "no plain value"),
        ("digits_resnet(width=20000)", "far larger than the tensors in the file"),
        ("digits_resnet(classes=900000)", "far larger than the tensors in the file"),
        ("torchvision:regnet_x_400mf(stem_width=900000)", "far larger than the tensors in the file"),
        (f"digits_resnet(width={'[' * 1000}1{']' * 1000})", "must be like"),
        (f"digits_resnet(width={'-' * 3000}1)", "must be like"),
        (f"digits_resnet(width={'9' * 5000})", "must be like"),
        ("digits_resnet(width=1, width=2)", "must be like"),
        ("digits_resnet(width=1.25)()", "must be like"),
        ("digits_resnet(width=1.25)(classes=3)", "must be like"),
        ("x" * 100_000, "is no architecture"),
    ],
)
def test_registries_fetch_nothing_and_build_nothing_large(arch: str, sentence: str, monkeypatch) -> None:
    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    with pytest.raises(ArchitectureError, match=sentence) as caught:
        build_network(FromFile(arch), fitting={"weight": torch.zeros(20_000)})
    assert len(str(caught.value)) < 700


def test_a_registered_network_in_a_card_is_built() -> None:
    state = build_network("torchvision:squeezenet1_1(num_classes=4)").state_dict()
    assert build_network(FromFile("torchvision:squeezenet1_1(num_classes=4)"), fitting=state).num_classes == 4


def test_a_library_in_the_current_folder_is_not_imported(tmp_path: Path, marker: Path, monkeypatch) -> None:
    (tmp_path / "timm.py").write_text(f"open({str(marker)!r}, 'w').close()")
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArchitectureError, match="from the current folder"):
        build_network(FromFile("timm:resnet18"))
    assert not marker.exists()


# What a card says about data


def test_a_path_in_a_card_is_not_opened(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.npz"
    digits = load_data("digits")
    arrays = {f"{kind}_{part}": getattr(getattr(digits, part), name).numpy()
              for part in ("train", "test") for kind, name in (("x", "images"), ("y", "labels"))}  # fmt: skip
    np.savez(data, **arrays)
    path = with_card(tmp_path / "a.safetensors", data=str(data))
    assert_one_sentence(capsys, main(["eval", str(path)]), str(data), "--data")
    assert main(["eval", str(path), "--data", str(data)]) == main(["eval", str(path), "--trust", str(path)]) == 0
    capsys.readouterr()
    other = with_card(tmp_path / "b.safetensors", data=str(data))
    assert_one_sentence(capsys, main(["eval", str(path), str(other), "--trust", str(path)]), "--data")


def test_only_a_card_or_the_user_names_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_card(tmp_path / "a.safetensors", data=None)
    assert_one_sentence(capsys, main(["eval", str(path)]), "no data", "--data")
    train = ["train", "digits_resnet", "--out", str(tmp_path / "b.safetensors")]
    assert_one_sentence(capsys, main(train), "no data", "--data")
    assert main(["eval", *digits_files("same-a"), "-q"]) == 0  # whose card names them


def test_a_card_has_nothing_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    import torchvision.datasets.utils as utils

    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(utils, "download_url", no_download)
    path = with_card(tmp_path / "a.safetensors", data="mnist")
    assert_one_sentence(capsys, main(["eval", str(path), "--data-root", str(tmp_path / "none")]), "--data mnist")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"preprocessing": {"size": [100_000, 100_000]}}, "4096 pixels"),
        ({"preprocessing": {"size": [4000, 4000], "mean": [0.3], "std": [0.3]}}, "64 times"),
        ({"preprocessing": {"mean": [0.5] * 1000}}, "1000 values"),
        ({"classes": [2**70]}, "known classes"),
        ({"metrics": json.loads("[" * 150 + "]" * 150)}, "card cannot be read"),
    ],
)
def test_cards_that_ask_for_too_much_are_one_sentence(tmp_path: Path, capsys, changes, word: str) -> None:
    path = with_card(tmp_path / "a.safetensors", **changes)
    code = main(["eval", str(path), "--data", "digits"])
    if word == "known classes":
        assert_one_sentence(capsys, code, "a.safetensors")
    else:
        assert_one_sentence(capsys, code, word)


# Pickles and archives


class Touching:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_no_pickle_is_executed(tmp_path: Path, marker: Path, write: Callable[..., object]) -> None:
    write({"state_dict": {"weight": torch.ones(2)}, "extra": Touching(marker)}, tmp_path / "evil.pt")
    assert read_checkpoint(tmp_path / "evil.pt").state["weight"].tolist() == [1, 1]
    written(tmp_path / "evil.npz", x_train=np.array([Touching(marker)], object))
    with pytest.raises(DataError, match="pickled objects"):
        load_data(tmp_path / "evil.npz")
    assert not marker.exists()


def test_an_archive_that_torch_once_unpickled_is_refused(tmp_path: Path) -> None:
    """Its first name makes it look like a file of `torch.save`."""
    path, name = tmp_path / "evil.pt", tmp_path / "member"
    name.write_bytes(b"content")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(name, arcname="PK\x03")
    with pytest.raises(CheckpointError, match="is a tar archive"):
        read_checkpoint(path)


def test_the_state_of_a_training_is_no_pickle_either(tmp_path: Path, marker: Path, capsys) -> None:
    train = ["train", "digits_resnet(width=0.25)", "--data", "digits", "--epochs", "1"]
    out = tmp_path / "net.safetensors"
    for content in ({"identity": Touching(marker)}, {"identity": 3}, {"identity": {}}):
        torch.save(content, f"{out}.training")
        assert_one_sentence(capsys, main([*train, "--out", str(out)]), "delete it to start afresh")
    assert not marker.exists()


def test_tensors_are_no_larger_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(1).expand(2**34)}, path)
    with pytest.raises(CheckpointError, match=r"64\.0 GiB of memory, and is a file of"):
        read_checkpoint(path)
    torch.save({"weight": torch.sparse_coo_tensor([[0]], [1.0], (2**40,))}, path)
    with pytest.raises(CheckpointError, match="weight is no plain tensor"):
        read_checkpoint(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
        packed.writestr("archive/data/1", bytes(2**29))
    with pytest.raises(CheckpointError, match="GiB of memory"):
        read_checkpoint(tmp_path / "packed.pt")


def test_numbers_that_mean_something_else_in_the_network_are_refused(tmp_path: Path) -> None:
    state = build_network(ARCH).state_dict()
    key = next(iter(state))
    save_file({**state, key: state[key].to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"{key} has 8 bits per number"):
        read_checkpoint(tmp_path / "a.safetensors")
    torch.save({**state, key: torch.complex(state[key], state[key])}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"{key} is complex there and real in the network"):
        load_into(build_network(ARCH), read_checkpoint(tmp_path / "a.pt"))
    for kind in (torch.int8, torch.uint8, torch.bool, torch.int32):
        torch.save({**state, key: (state[key] * 100).to(kind)}, tmp_path / "a.pt")
        with pytest.raises(
            CheckpointError, match=rf"{key} is whole numbers there \({kind}\), as quantised weights are"
        ):
            load_into(build_network(ARCH), read_checkpoint(tmp_path / "a.pt"))


def test_pickles_of_arrays_are_no_larger_than_their_file(tmp_path: Path) -> None:
    path, nested = tmp_path / "net.pkl", [1.0]
    for _ in range(64):
        nested = [nested] * 10
    path.write_bytes(pickle.dumps({"weight": np.ones(3), "nested": nested}, protocol=2))
    assert read_checkpoint(path).state["weight"].tolist() == [1, 1, 1]
    index = struct.pack("<I", 2**31)  # of the memory that a pickle asks for; a reader in C makes room for all before it
    path.write_bytes(b"\x80\x02}r" + index + b".")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(path)


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for header in (struct.pack("<Q", 2**31) + b"{}", struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(header)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


# Data files


def written(path: Path, **changed: np.ndarray) -> Path:
    arrays = {f"x_{part}": np.zeros((4, 6, 6), np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(4) for part in ("train", "test")}
    np.savez(path, **(arrays | changed))
    return path


def test_an_array_that_is_not_there_is_not_made_room_for(tmp_path: Path) -> None:
    path = written(tmp_path / "data.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name == "x_train.npy":
                header = io.BytesIO()
                claimed = {"descr": "|u1", "fortran_order": False, "shape": (20_971_520, 32, 32)}
                np.lib.format.write_array_header_1_0(header, claimed)
                content = header.getvalue() + content[-144:]
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"x_train is said to have shape \(20971520, 32, 32\), but is cut off"):
        load_data(path)


def test_an_array_larger_than_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "data.npz")
    assert len(load_data(path).train) == 4
    monkeypatch.setattr("depfuse.data.memory.free_memory", lambda: 100)
    with pytest.raises(DataError, match=r"data\.npz: x_train need 0\.0 GiB of memory"):
        load_data(path)
    np.savez_compressed(path, **np.load(path))
    with pytest.raises(DataError, match=r"data\.npz: x_train needs 0\.0 GiB of memory"):
        load_data(path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"y_train": np.array([0, 1, 2, 2**40])}, "1099511627776 means more classes than any data set has"),
        ({"classes": np.array("abc")}, r"classes has shape \(\): names of classes are one list"),
        ({"classes": np.array([["a", "b"]])}, r"classes has shape \(1, 2\)"),
        ({"classes": np.zeros(100_001, "S1")}, "at most 100000"),
        ({"x_train": np.zeros((4, 0, 6), np.uint8)}, "no pixels"),
        ({"y_train": np.full(4, 2**63 + 1, np.uint64)}, "holds label 9223372036854775809"),
    ],
)
def test_arrays_that_make_no_sense_are_one_sentence(tmp_path: Path, changed, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(written(tmp_path / "data.npz", **changed))


def test_names_of_classes_may_be_bytes(tmp_path: Path) -> None:
    names = np.array([b"ant", b"bee", b"cat", b"dog"])
    assert load_data(written(tmp_path / "data.npz", classes=names)).classes == ("ant", "bee", "cat", "dog")


def folder_of(root: Path, *images: Image.Image, suffix: str = ".png") -> Path:
    for part in ("train", "test"):
        (root / part / "one").mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save(root / part / "one" / f"{number}{suffix}")
    return root


def grey(shade: int = 100) -> Image.Image:
    return Image.new("L", (5, 4), shade)


def chunk(kind: bytes, content: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_of_hundreds_of_megapixels_is_one_sentence(tmp_path: Path, side: int) -> None:
    folder_of(tmp_path, grey())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    parts = (b"\x89PNG\r\n\x1a\n", header, chunk(b"IDAT", b""), chunk(b"IEND", b""))
    (tmp_path / "train/one/9.png").write_bytes(b"".join(parts))
    with pytest.raises(DataError, match=r"9\.png has more than 89 megapixels"):
        load_data(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on this system")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """Nothing is ever written to this pipe: to open it would last for ever."""
    os.mkfifo(folder_of(tmp_path, grey()) / "train" / "one" / "z.png")
    with pytest.raises(DataError, match=r"z\.png is no image, but a folder, pipe or device"):
        load_data(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on this system")
def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors is a pipe or device"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_network_that_takes_many_operations_to_build_is_given_up() -> None:
    ones = torch.ones(1)

    def slow() -> None:
        for _ in range(10**7):
            ones.add_(1)

    with pytest.raises(ArchitectureError, match="far larger than the tensors in the file"):
        build_bounded(slow, FromFile("slow"), {}, {"weight": torch.zeros(1)})
    assert float(ones) < 10**5


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero on this system")
def test_a_recipe_without_end_is_one_sentence() -> None:
    with pytest.raises(RecipeError, match="/dev/zero is larger than any recipe"):
        read_settings("/dev/zero")


def test_images_that_need_another_program_are_not_decoded(tmp_path: Path, marker: Path) -> None:
    folder_of(tmp_path, grey())
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n({marker}) (w) file closefile\nshowpage\n"
    (tmp_path / "train/one/9.png").write_text(script)
    with pytest.raises(DataError, match=r"9\.png cannot be read as an image"):
        load_data(tmp_path)
    assert not marker.exists()


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    folder_of(tmp_path, grey())
    for name in ("._3.png", ".DS_Store", ".hidden.png"):
        (tmp_path / "train/one" / name).write_bytes(b"\x00\x05\x16\x07")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "train" / name).mkdir()
        grey().save(tmp_path / "train" / name / "0.png")
    data = load_data(tmp_path)
    assert data.classes == ("one",)
    assert len(data.train) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_mean_the_same_as_8(tmp_path: Path, suffix: str) -> None:
    shades = np.arange(0, 240, 12, dtype=np.uint16).reshape(4, 5)
    wide = folder_of(tmp_path / "16", Image.fromarray(shades * 257), suffix=suffix)
    narrow = folder_of(tmp_path / "8", Image.fromarray(shades.astype(np.uint8)), suffix=suffix)
    assert torch.equal(load_data(wide).train.images, load_data(narrow).train.images)
    assert load_data(wide).train.images[0, 0].tolist() == shades.tolist()


def test_floats_are_scaled_or_refused(tmp_path: Path) -> None:
    shades = np.arange(20, dtype=np.float32).reshape(4, 5)
    data = load_data(folder_of(tmp_path / "unit", Image.fromarray(shades / 255), suffix=".tif"))
    assert data.train.images[0, 0].tolist() == shades.tolist()
    with pytest.raises(DataError, match=r"floats outside \[0, 1\]"):
        load_data(folder_of(tmp_path / "wide", Image.fromarray(shades), suffix=".tif"))
    with pytest.raises(DataError, match="do not say what is white"):
        load_data(folder_of(tmp_path / "whole", Image.fromarray(shades.astype(np.int32)), suffix=".tif"))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_one_image_in_colour_among_grey_ones_is_converted(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    other = Image.new("RGB", (5, 4), (100, 100, 100)).convert(mode)
    folder_of(tmp_path, grey(), grey(), other, suffix=suffix)
    with pytest.warns(DepfuseWarning, match="2 of 6 images .* are in colour"):
        data = load_data(tmp_path)
    assert data.train.images.shape == (3, 1, 4, 5)
    assert (data.train.images.int() - 100).abs().max() <= 2  # a palette has not every shade


def test_one_grey_image_among_those_in_colour_is_converted(tmp_path: Path) -> None:
    colour = Image.new("RGB", (5, 4), (10, 20, 30))
    data = load_data(folder_of(tmp_path, colour, grey(), Image.new("LA", (5, 4), (50, 0)), colour))
    assert data.train.images.shape == (4, 3, 4, 5)
    assert data.train.images[:, :, 0, 0].tolist() == [[10, 20, 30], [100] * 3, [50] * 3, [10, 20, 30]]


# Recipes, reports and studies


def test_recipes_and_reports_are_data(tmp_path: Path, marker: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(RecipeError, match="nested too deeply"):
        read_settings(str(deep))
    yaml = tmp_path / "recipe.json"
    yaml.write_text(f"!!python/object/apply:os.system ['touch {marker}']")
    with pytest.raises(RecipeError, match="is not JSON"):
        read_settings(str(yaml))
    assert not marker.exists()


def test_names_that_are_no_unicode_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    paths = [with_card(folder / name) for name in ("a.safetensors", "b.safetensors")]
    report, child = folder / "report.json", folder / "c.safetensors"
    files = ["--report", str(report), "--out", str(child)]
    assert main(["fuse", *map(str, paths), "--data", "digits", *FEW, *files]) == 0
    assert str(read_report(report).parents[0].path).endswith(r"caf\udce9/a.safetensors")
    assert read_checkpoint(child).card.parents[0].path.endswith(r"caf\udce9/a.safetensors")
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "report.json").write_bytes(report.read_bytes())
    assert len(find_runs(tmp_path).runs) == 1


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert readable("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\nc\\u202e"
    assert storable({"a": ["é", "\udce9"]}) == {"a": ["é", "\\udce9"]}
    path = with_card(tmp_path / "a.safetensors", architecture="os:x\x1b[2J")
    assert main(["eval", str(path), "--data", "digits"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_study_in_a_file_holds_no_pickle() -> None:
    """Optuna unpickles what it calls snapshots, which other backends have."""
    assert not hasattr(JournalFileBackend, "load_snapshot")


def test_a_worker_in_a_study_is_no_path(tmp_path: Path) -> None:
    (tmp_path / ".worker-x").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    storage = FileStorage(tmp_path / "study.log")
    study = optuna.create_study(storage=storage.optuna)
    trial = study.ask()
    trial.set_user_attr(WORKER, "x/../victim")
    storage.take_over(study)
    storage.close()
    assert victim.read_text() == "precious"


def test_a_trial_that_somebody_queued_is_given_up_where_it_is_none() -> None:
    from depfuse.study.objective import Objective
    from depfuse.study.search_space import Space

    objective = object.__new__(Objective)
    objective._space = Space(2, {})
    trial = optuna.trial.FixedTrial({"align.criterion": "__import__('os')"})
    with pytest.raises(optuna.TrialPruned, match="__import__"):
        objective(trial)


@pytest.mark.parametrize("found", [3, {"recipe": 4}, {"trial": 1, "recipe": None}, {"recipe": {}, "digest": []}])
def test_results_in_a_study_that_are_none_are_one_sentence(found: object) -> None:
    trial = create_trial(state=TrialState.COMPLETE, value=1.0, user_attrs={RESULT: found})
    with pytest.raises(StudyError, match="holds no result of depfuse tune"):
        record_of(trial)
