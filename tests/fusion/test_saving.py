"""Children that were fused in memory are written with their cards, all or nothing, and loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digits_parents import digits_files, small_parents
from torch import Tensor, nn

import depfuse
from depfuse import FusionResult, fuse
from depfuse.cli import main
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.errors import ArchitectureError, CheckpointError
from depfuse.io.checkpoint import read_checkpoint, state_digest


class Own(nn.Module):
    """A network that no registry knows."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Hub(Own):
    """A network that writes itself, as those of transformers do."""

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "hub"}))
        torch.save(self.state_dict(), Path(folder) / "pytorch_model.bin")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


def fused(parents: list[nn.Module], data: DataSet) -> FusionResult:
    return fuse(parents, "fast", calibration_loader(data, 60))


def own_parents(kind: type[nn.Module] = Own) -> list[nn.Module]:
    parents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(kind().eval())
    return parents


def same(first: nn.Module, second: nn.Module) -> bool:
    return state_digest(first.state_dict()) == state_digest(second.state_dict())


def test_a_child_of_built_in_networks_is_loaded_by_its_card(data: DataSet, tmp_path: Path) -> None:
    result = fused(small_parents(), data)
    found = result.comparison(Loader(data.test, data.preprocessing, batch_size=500))
    result.save(tmp_path / "child.safetensors")
    assert same(depfuse.load(tmp_path / "child.safetensors"), result.child)
    card = read_checkpoint(tmp_path / "child.safetensors").card
    assert card is not None
    assert card.recipe == result.recipe.model_dump(mode="json")
    assert card.metrics["accuracy"] == found.child.accuracy
    assert card.preprocessing == data.preprocessing
    assert [parent.digest for parent in card.parents] == [state_digest(own.state_dict()) for own in result.parents]
    assert main(["eval", str(tmp_path / "child.safetensors"), "--data", "digits", "--quiet"]) == 0


def test_library_and_command_line_write_the_same_card(data: DataSet, tmp_path: Path) -> None:
    files = digits_files("a", "b")
    parents = [depfuse.load(file) for file in files]
    assert (
        main(["fuse", *files, "--preset", "fast", "--calibration", "60", "--out", str(tmp_path / "a.safetensors")]) == 0
    )
    result = fuse(parents, {"preset": "fast", "calibration.images": 60}, calibration_loader(data, 60))
    result.comparison(Loader(data.test, data.preprocessing, batch_size=500))
    result.save(tmp_path / "b.safetensors", arch="digits_resnet(width=1.25)")
    cards = [read_checkpoint(tmp_path / name).card for name in ("a.safetensors", "b.safetensors")]
    first, second = (card.model_dump(exclude={"data", "parents"}) for card in cards if card is not None)
    assert first == second


def test_a_child_of_ones_own_class_is_loaded_by_it(data: DataSet, tmp_path: Path) -> None:
    result = fused(own_parents(), data)
    result.save(tmp_path / "child.safetensors")
    assert same(depfuse.load(tmp_path / "child.safetensors", Own), result.child)
    assert same(depfuse.load(tmp_path / "child.safetensors", arch=lambda: Own(6)), result.child)
    with pytest.raises(ArchitectureError, match="code of somebody's own"):
        depfuse.load(tmp_path / "child.safetensors")
    with pytest.raises(CheckpointError, match="does not fit Own"):
        depfuse.load(tmp_path / "child.safetensors", lambda: Own(7))
    with pytest.raises(ArchitectureError, match="give an architecture"):
        depfuse.load(tmp_path / "child.safetensors", own_parents()[0])  # type: ignore[arg-type]


def test_an_architecture_that_is_another_network_is_refused(data: DataSet, tmp_path: Path) -> None:
    result = fused(small_parents(), data)
    for width in (0.25, 2):
        with pytest.raises(ArchitectureError, match="another network than the child"):
            result.save(tmp_path / "child.safetensors", arch=f"digits_resnet(width={width})")
    assert list(tmp_path.iterdir()) == []


def test_saving_disturbs_nothing_and_leaves_nothing_half_written(data: DataSet, tmp_path: Path) -> None:
    result = fused(small_parents(), data)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    result.save(tmp_path / "child.safetensors")
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        result.save(tmp_path / "child.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["child.safetensors"]


def test_a_partly_merged_child_is_loaded_wider_than_its_class(data: DataSet, tmp_path: Path) -> None:
    result = fuse(small_parents(), {"preset": "fast", "merge.keep_worst": 0.5}, calibration_loader(data, 60))
    result.save(tmp_path / "child.safetensors")
    assert same(depfuse.load(tmp_path / "child.safetensors"), result.child)


def test_a_folder_holds_configuration_weights_and_a_model_card(data: DataSet, tmp_path: Path) -> None:
    result = fused(own_parents(), data)
    folder = tmp_path / "child"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    result.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Own"]
    assert repr(result) in (folder / "README.md").read_text()
    assert same(depfuse.load(folder, Own), result.child)
    assert [path.name for path in tmp_path.iterdir()] == ["child"]
    result.save_pretrained(folder)  # of depfuse's own card nothing is lost
    (folder / "README.md").write_text("# My project\n")
    with pytest.raises(CheckpointError, match=r"child has a README\.md of its own, which would be lost"):
        result.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "# My project\n"


def test_what_is_written_lies_in_a_file_by_its_model_card_and_its_result(data: DataSet, tmp_path: Path) -> None:
    test = Loader(data.test, data.preprocessing, batch_size=500)
    recipe = {"preset": "standard", "refit.steps": 0, "teach.head": "none"}
    result = fuse(small_parents(), recipe, calibration_loader(data, 100))
    found = result.comparison(test)
    assert "The child lies in no file" in found.verdict
    alone = replace(result)
    alone.keep(found)
    result.save_pretrained(tmp_path / "child")
    text = (tmp_path / "child" / "README.md").read_text()
    assert "in no file" not in " ".join(text.split())
    for verdict in (result.verdict, result.comparison(test).verdict):
        assert verdict == found.verdict.replace(" The child lies in no file: `result.save(file)` writes it.", "")
    alone.save(tmp_path / "child.safetensors")
    assert alone.verdict == result.verdict


def test_a_network_that_writes_itself_does(data: DataSet, tmp_path: Path) -> None:
    result = fused(own_parents(Hub), data)
    result.save_pretrained(tmp_path / "child")
    assert json.loads((tmp_path / "child" / "config.json").read_text()) == {"model_type": "hub"}
    loaded = Hub()
    loaded.load_state_dict(torch.load(tmp_path / "child" / "pytorch_model.bin"))
    assert same(loaded, result.child)


def test_what_fails_while_it_is_written_changes_nothing(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fused(own_parents(Hub), data)
    result.save_pretrained(tmp_path / "child")
    before = {path.name: path.read_bytes() for path in (tmp_path / "child").iterdir()}

    def fail(self: Hub, folder: str) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Hub, "save_pretrained", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        result.save_pretrained(tmp_path / "child")
    assert {path.name: path.read_bytes() for path in (tmp_path / "child").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_a_network_of_timm_is_loaded_by_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    parents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(timm.create_model("test_resnet", num_classes=3).eval())
    result = fuse(parents, "fast", torch.rand(8, 3, 64, 64))
    result.save_pretrained(tmp_path / "child")
    assert same(timm.create_model(f"local-dir:{tmp_path / 'child'}", pretrained=True), result.child)
