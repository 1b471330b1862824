"""Folders of transformers and timm go into `depfuse fuse`, and one that these libraries load comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import ConvNextImageProcessor

from depfuse import load
from depfuse.cli import main

SMALL = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1]}
KINDS = {
    "ResNet": {"embedding_size": 8, "layer_type": "basic", **SMALL},
    "ConvNextV2": {"num_stages": 2, "image_size": 32, **SMALL},
}


def write_network(folder: Path, names: Sequence[str], seed: int = 0, kind: str = "ResNet") -> torch.nn.Module:
    """A small network of transformers with its image processor, as its library writes it."""
    config = getattr(transformers, f"{kind}Config")(
        **KINDS[kind], id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)}
    )
    torch.manual_seed(seed)
    network = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    network.save_pretrained(folder)
    size = {"shortest_edge": 32}
    ConvNextImageProcessor(size=size, crop_pct=1.0, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return network


def write_photos(folder: Path, names: Sequence[str]) -> None:
    """Photographs by class, or none where there is only one name."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for place, name in enumerate(names):
            below = folder / part / name
            below.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 100 + 50 * place, (40, 48, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(below / f"{number}.png")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fuse(*arguments: str) -> int:
    return main(["fuse", "a", "b", "--data", "photos", "--preset", "fast", "--quiet", *arguments])


def outputs(network: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_two_folders_make_one_that_transformers_loads(kind: str) -> None:
    for seed, name in enumerate("ab"):
        write_network(Path(name), ("cat", "dog"), seed, kind)
    write_photos(Path("photos"), ("cat", "dog"))
    assert fuse("--out", "child", "--report", "report.json") == 0
    child = getattr(transformers, f"{kind}ForImageClassification").from_pretrained("child")
    assert child.config.id2label == {0: "cat", 1: "dog"}
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(outputs(load("child"), images), outputs(child, images))
    assert Path("child/preprocessor_config.json").read_bytes() == Path("a/preprocessor_config.json").read_bytes()
    processor = transformers.AutoImageProcessor.from_pretrained("child")
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    report = json.loads(Path("report.json").read_text())
    assert report["preprocessing"] == {"size": [32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 0.5]}
    card = Path("child/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-classification\n")
    for expected in ("- `a`, SHA-256", "- `b`, SHA-256", "- accuracy: ", "## Licence", '"preset": "fast"'):
        assert expected in card
    assert main(["eval", "child", "a", "--data", "photos", "--quiet"]) == 0


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("labelled", [True, False])
def test_parents_that_list_the_same_classes_in_other_orders_make_the_same_child(labelled: bool) -> None:
    """Rows of the second parent's head, and its id2label, are in another order; the child is as if they were not."""
    for seed, name in enumerate("ab"):
        network = write_network(Path(name), ("cat", "dog", "fox"), seed)
    write_photos(Path("photos"), ("cat", "dog", "fox"))
    if not labelled:
        Path("photos/test").rename("unused")
        Path("photos/train/cat").rename("only")
        Path("photos").rename("labelled")
        Path("only").rename("photos")
    assert fuse("--out", "expected") == 0
    order = [2, 0, 1]
    with torch.no_grad():
        for tensor in network.classifier[-1].state_dict().values():
            tensor.copy_(tensor[order])
    names = [network.config.id2label[place] for place in order]
    network.config.id2label, network.config.label2id = dict(enumerate(names)), {own: n for n, own in enumerate(names)}
    network.save_pretrained("b")
    assert load("b").config.id2label == {0: "fox", 1: "cat", 2: "dog"}
    assert fuse("--out", "child") == 0
    children = [transformers.ResNetForImageClassification.from_pretrained(name) for name in ("child", "expected")]
    assert children[0].config.id2label == children[1].config.id2label == {0: "cat", 1: "dog", 2: "fox"}
    states = [child.state_dict() for child in children]
    assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("labelled", [True, False])
def test_a_child_of_different_labels_has_those_of_both(labelled: bool) -> None:
    write_network(Path("a"), ("cat", "dog"), 0)
    write_network(Path("b"), ("dog", "fox"), 1)
    write_photos(Path("photos"), ("cat", "dog", "fox") if labelled else ("all",))
    if not labelled:
        Path("photos/test/all").rename(Path("photos/train/more"))
        Path("photos/train").rename(Path("photos/images"))
        Path("photos/test").rmdir()
    assert fuse("--out", "child") == 0
    child = transformers.ResNetForImageClassification.from_pretrained("child")
    assert sorted(child.config.id2label.values()) == ["cat", "dog", "fox"]
    assert {name: child.config.id2label[number] for name, number in child.config.label2id.items()} == {
        name: name for name in ("cat", "dog", "fox")
    }
    assert outputs(child, torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert main(["eval", "child", "--data", "photos", "--quiet"]) == 0


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_numbered_data_do_not_say_which_of_differently_named_outputs_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed, (name, names) in enumerate({"a": ("ant", "cat"), "b": ("cat", "dog")}.items()):
        write_network(Path(name), names, seed)
    images = np.random.default_rng(0).random((30, 32, 32, 3), np.float32)
    np.savez("numbered.npz", x_train=images, y_train=np.arange(30) % 2, x_test=images, y_test=np.arange(30) % 2)
    command = ["fuse", "a", "b", "--data", "numbered.npz", "--preset", "fast", "--out", "child.safetensors"]
    assert main(command) == 2
    assert "parent 1 calls its outputs ant, cat, and parent 2 cat, dog: say so by --classes" in capsys.readouterr().err
    assert main([*command, "--classes", "0-1", "--classes", "0-1"]) == 0


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_fewer_classes_are_found_by_their_names() -> None:
    """Data of two of the three classes that id2label names: nothing has to be said."""
    for seed, name in enumerate("ab"):
        write_network(Path(name), ("ant", "cat", "dog"), seed)
    write_photos(Path("photos"), ("cat", "dog"))
    assert fuse("--out", "child") == 0
    assert transformers.ResNetForImageClassification.from_pretrained("child").config.id2label[0] == "ant"
    assert main(["eval", "a", "--data", "photos", "--quiet"]) == 0
    write_photos(Path("others"), ("cat", "owl"))
    assert main(["eval", "a", "--data", "others"]) == 2


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_folders_of_timm_make_one_that_timm_loads(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        network = timm.create_model("test_resnet", num_classes=2)
        seen = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3)}
        timm.models.save_for_hf(network, name, safe_serialization=True, data_config=seen)
    write_photos(Path("photos"), ("cat", "dog"))
    assert main(["fuse", "a", "b", "--data", "photos", "--preset", "fast", "--out", "child"]) == 0
    printed = capsys.readouterr().out
    assert "model = timm.create_model('local-dir:child', pretrained=True)" in printed
    config = json.loads(Path("child/config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert config["label_names"] == ["cat", "dog"]
    assert "license" not in config["pretrained_cfg"]
    overlay = {"file": "child/model.safetensors", "num_classes": 2}
    loaded = [
        timm.create_model("local-dir:child", pretrained=True),
        timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2),
        timm.create_model("test_resnet", checkpoint_path="child/model.safetensors", num_classes=2),
    ]
    expected = load("child").state_dict()
    for network in loaded:
        found = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert main(["eval", "child", "--data", "photos", "--quiet"]) == 0


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_weights_in_parts_and_in_a_pickle_are_read() -> None:
    network = write_network(Path("whole"), ("cat", "dog"))
    network.save_pretrained("parts", max_shard_size="10KB")
    assert Path("parts/model.safetensors.index.json").is_file()
    Path("pickle").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (Path("pickle") / name).write_bytes((Path("whole") / name).read_bytes())
    torch.save(network.state_dict(), "pickle/pytorch_model.bin")
    for name in ("parts", "pickle"):
        found = load(name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    write_photos(Path("photos"), ("cat", "dog"))
    assert main(["eval", "pickle", "whole", "--data", "photos"]) == 0


def test_what_contradicts_the_folder_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        write_network(Path(name), ("cat", "dog"), seed)
    write_photos(Path("photos"), ("cat", "dog"))

    def refused(*arguments: str) -> str:
        capsys.readouterr()  # of transformers, while it wrote
        assert fuse(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("depfuse: warning: ") for line in lines[:-1])
        return lines[-1]

    assert "a/config.json says a transformers:ResNetForImageClassification, and --arch torchvision:resnet18" in refused(
        "--arch", "torchvision:resnet18"
    )
    assert "a/config.json says depths=[1, 1], and --arch" in refused(
        "--arch", "transformers:ResNetForImageClassification(depths=[2, 2])"
    )
    assert "would overwrite an input" in refused("--out", "a")
    Path("project").mkdir()
    Path("project/README.md").write_text("# Everything that I know of cats\n")
    assert "project has a README.md of its own, which would be lost" in refused("--out", "project")
    assert "for the layout of the first parent, or be that of a folder" in refused("--out", "child.bin")
    assert "wider than its library builds it" in refused("--out", "child", "--set", "merge.keep_worst=0.5")
    assert not Path("child").exists()
    write_network(Path("b"), ("cat", "dog"), kind="ConvNextV2")
    assert "only networks of one architecture can be fused" in refused()


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_file_comes_out_where_a_file_is_wanted() -> None:
    for seed, name in enumerate("ab"):
        write_network(Path(name), ("cat", "dog"), seed)
    write_photos(Path("photos"), ("cat", "dog"))
    arch = "transformers:ResNetForImageClassification"
    assert fuse("--out", "child.safetensors", "--arch", arch) == 0
    child = load("child.safetensors")
    assert isinstance(child, transformers.ResNetForImageClassification)
    assert main(["eval", "child.safetensors", "--data", "photos", "--quiet"]) == 0
