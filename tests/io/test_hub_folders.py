"""What config.json and preprocessor_config.json say is read as data, and no code is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from depfuse import load
from depfuse.data import Preprocessing
from depfuse.errors import ArchitectureError, CheckpointError, DepfuseWarning
from depfuse.io.cards import Card
from depfuse.io.headers import read_card
from depfuse.io.same_layout import layout_of
from depfuse.models import build_network
from depfuse.models.transformers_networks import names_in_files

RESNET = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "id2label": {"0": "cat", "1": "dog"},
    "label2id": {"cat": 0, "dog": 1},
    "torch_dtype": "float16",
    "transformers_version": "4.40.0",
    "_name_or_path": "somebody/resnet",
}
PROCESSOR = {"size": {"shortest_edge": 24}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}


def write(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    return folder


def card_of(*content: Any) -> Card:
    card = read_card(write(*content))
    assert card is not None
    return card


def test_a_folder_says_its_network_classes_and_images(tmp_path: Path) -> None:
    card = card_of(tmp_path / "a", RESNET, PROCESSOR)
    assert card.architecture == (
        "transformers:ResNetForImageClassification(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],"
        " layer_type='basic', num_labels=2)"
    )
    assert card.names == ("cat", "dog")
    assert card.preprocessing == Preprocessing(size=(24, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    network = build_network(card.architecture)
    assert type(network) is transformers.ResNetForImageClassification
    assert network.config.hidden_sizes == [8, 16]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 24}, {"size": (24, 24)}),
        ({"size": {"height": 24, "width": 20}}, {"size": (24, 20)}),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, {"size": (224, 224)}),
        ({"size": 24, "do_resize": False}, {"size": None}),
        ({"size": 24, "do_normalize": False}, {"size": (24, 24), "mean": None, "std": None}),
        ({"size": 24, "do_rescale": False, "do_normalize": False}, {"mean": (0.0,), "std": (1 / 255,)}),
        # x / 127.5 - 1 for x of 0 to 255
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [1.0]}, {"mean": (0.5,), "std": (0.5,)}),
    ],
)
def test_images_are_prepared_as_the_processor_says(
    tmp_path: Path, processor: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = card_of(tmp_path / "a", RESNET, {"image_mean": [0.5], "image_std": [0.25], **processor}).preprocessing
    assert found is not None
    for name, value in expected.items():
        own = getattr(found, name)
        assert own == (value if value is None else pytest.approx(value))


def test_the_standard_names_of_classes_are_none(tmp_path: Path) -> None:
    card = card_of(tmp_path / "a", {**RESNET, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}})
    assert card.names is None
    assert "num_labels=3" in card.architecture
    with pytest.raises(CheckpointError, match="not for 0, 1, 2"):
        read_card(write(tmp_path / "b", {**RESNET, "id2label": {"0": "cat", "2": "dog"}}))


def test_folders_of_timm_say_theirs(tmp_path: Path) -> None:
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "label_names": ["ant", "cat", "dog"],
        "pretrained_cfg": {"input_size": [1, 32, 24], "mean": [0.1], "std": [0.5], "classifier": "fc"},
    }
    card = card_of(tmp_path / "a", config)
    assert card.architecture == "timm:test_resnet(num_classes=3, in_chans=1)"
    assert card.names == ("ant", "cat", "dog")
    assert card.preprocessing == Preprocessing(size=(32, 24), mean=(0.1,), std=(0.5,))


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    folder = tmp_path / "a"
    config = {**RESNET, "auto_map": {"AutoModelForImageClassification": "modeling.Own"}}
    write(folder, config)
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')")
    with pytest.warns(DepfuseWarning, match=r"names code of its own \(auto_map\), which is not run"):
        card = read_card(folder)
    assert card is not None
    build_network(card.architecture)
    assert not trap.exists()
    with (
        pytest.warns(DepfuseWarning, match="auto_map"),
        pytest.raises(ArchitectureError, match="transformers has no network OwnForImageClassification"),
    ):
        load(write(folder, {**config, "architectures": ["OwnForImageClassification"]}))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "PreTrainedConfig", "AutoImageProcessor", "os"])
def test_what_is_no_network_of_transformers_is_not_called(name: str) -> None:
    with pytest.raises(ArchitectureError, match=f"transformers has no network {name}"):
        build_network(f"transformers:{name}")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"use_pretrained_backbone": True}, "may fetch or read other files"),
        ({"backbone": "resnet50"}, "may fetch or read other files"),
        ({"backbone_config": {"model_type": "resnet", "backbone": "resnet50"}}, "may fetch or read other files"),
        ({"adapter": "../other"}, "is given no plain value"),
        ({"depths": [10**9]}, "is given no plain value"),
        ({"hidden_sizes": [200_000, 900_000]}, "far larger than the tensors"),
    ],
)
def test_a_configuration_fetches_nothing_and_builds_nothing_large(
    tmp_path: Path, entry: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        load(write(tmp_path / "a", {**RESNET, **entry}))


def test_kernels_are_not_fetched(tmp_path: Path) -> None:
    card = card_of(tmp_path / "a", {**RESNET, "attn_implementation": "kernels-community/own"})
    assert "kernels" not in card.architecture


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"architectures": ', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (json.dumps({**RESNET, "quantization_config": {"bits": 4}}), "holds quantised weights"),
        (json.dumps({**RESNET, "architectures": ["a b"]}), "which is no class of transformers"),
        (json.dumps({"architecture": "../x", "pretrained_cfg": {}}), "which is none of timm"),
    ],
)
def test_configurations_that_are_none_are_one_sentence(tmp_path: Path, config: str, reason: str) -> None:
    folder = write(tmp_path / "a", RESNET)
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=reason):
        read_card(folder)


def test_pre_processing_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", RESNET, {**PROCESSOR, "image_std": [0.0, 1.0, 1.0]})
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: .*std"):
        read_card(folder)


def test_other_folders_stay_as_they_were(tmp_path: Path) -> None:
    """A configuration of another library says nothing, and the user does."""
    assert read_card(write(tmp_path / "a", {"_class_name": "UNet2DModel"})) is None
    assert read_card(write(tmp_path / "b", {})) is None


def test_a_name_that_shares_a_tensor_may_be_missing(tmp_path: Path) -> None:
    """Of tied weights transformers writes one."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    network = transformers.BertForMaskedLM(config)
    network.save_pretrained(tmp_path / "bert")
    found = load(tmp_path / "bert").state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ViTForImageClassification", {**SIZES, "intermediate_size": 16}),
        ("Dinov2Model", SIZES),
        ("SwinForImageClassification", {"image_size": 16, "embed_dim": 8, "depths": [1], "num_heads": [2]}),
    ],
)
@pytest.mark.parametrize("form", ["folder", "own names", "names of the file"])
def test_networks_whose_files_have_other_names_are_read(
    tmp_path: Path, name: str, sizes: Mapping[str, Any], form: str
) -> None:
    """From version 5 of transformers on, names in files may be those of earlier versions and not the network's."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    network = kind(kind.config_class(**sizes)).eval()
    network.save_pretrained(tmp_path / "a")
    if form == "folder":
        read = load(tmp_path / "a")
    else:
        state = network.state_dict() if form == "own names" else load_file(tmp_path / "a" / "model.safetensors")
        torch.save({"model": state}, tmp_path / "a.pt")
        arguments = ", ".join(f"{key}={value!r}" for key, value in sizes.items())
        read = load(tmp_path / "a.pt", f"transformers:{name}({arguments})")
        written = layout_of(tmp_path / "a.pt", None, read.state_dict(), names_in_files(read))
        assert written.content(read.state_dict())["model"].keys() == state.keys()
    assert read.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, read.state_dict()[key]) for key, tensor in network.state_dict().items())
