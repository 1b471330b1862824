"""Networks of transformers are fused, refitted and judged in Python, from batches as their processors give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import BatchEncoding, ConvNextImageProcessor

import depfuse
from depfuse import Parents, fuse
from depfuse.errors import CheckpointError, RecipeError

SMALL = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1]}
KINDS = {
    "ResNet": {"embedding_size": 8, "layer_type": "basic", **SMALL},
    "ConvNextV2": {"num_stages": 2, "image_size": 32, **SMALL},
}


def network(kind: str, seed: int, **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind], **{"num_labels": 4, **settings})
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def batches() -> list[BatchEncoding]:
    torch.manual_seed(0)
    images, labels = torch.rand(60, 3, 32, 32), torch.randint(4, (60,))
    return [BatchEncoding({"pixel_values": images[i : i + 20], "labels": labels[i : i + 20]}) for i in range(0, 60, 20)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_loader_of_their_batches_is_enough(kind: str) -> None:
    parents = [network(kind, seed) for seed in (0, 1)]
    result = fuse(parents, {"preset": "fast", "refit": {"name": "ridge", "steps": 20}}, batches())
    assert type(result.child) is type(parents[0])
    assert result.groups.count == 4
    given = batches()[0]["pixel_values"]
    with torch.no_grad():
        outputs = result.child(pixel_values=given)
    assert outputs.logits.shape == (20, 4)
    found = result.comparison(batches())
    correct = sum(
        int((result.child(batch["pixel_values"]).logits.argmax(1) == batch["labels"]).sum()) for batch in batches()
    )
    assert found.child.accuracy == correct / 60


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_permuted_copy_is_matched_and_gives_the_parent_again() -> None:
    """Channels between the two convolutions of a block in another order: the same function."""
    first, second = (network("ResNet", 0) for _ in range(2))
    inner, outer = (f"resnet.encoder.stages.0.layers.0.layer.{place}" for place in (0, 1))
    state, order = second.state_dict(), torch.randperm(8)
    for key, tensor in state.items():
        if key.startswith(inner) and tensor.dim() > 0:
            tensor.copy_(tensor[order].clone())
    weight = state[f"{outer}.convolution.weight"]
    weight.copy_(weight[:, order].clone())
    result = fuse([first, second], "fast", batches())
    images = batches()[0]["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(result.child(images).logits, first(images).logits)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("having_it", "ab")
def test_networks_from_pretrained_are_written_as_they_came(tmp_path: Path, having_it: str) -> None:
    for seed, name in enumerate("ab"):
        network("ResNet", seed, id2label=dict(enumerate(("ant", "cat", "dog", "fox")))).save_pretrained(tmp_path / name)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / having_it)
    kind = transformers.ResNetForImageClassification
    parents = [kind.from_pretrained(tmp_path / name) for name in "ab"]
    result = fuse(parents, "fast", batches())
    result.comparison(batches())
    result.save_pretrained(tmp_path / "child")
    for loaded in (kind.from_pretrained(tmp_path / "child"), depfuse.load(tmp_path / "child")):
        assert loaded.config.id2label == {0: "ant", 1: "cat", 2: "dog", 3: "fox"}
        expected = result.child.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert (tmp_path / "child/preprocessor_config.json").read_text() == (
        tmp_path / having_it / "preprocessor_config.json"
    ).read_text()
    card = (tmp_path / "child" / "README.md").read_text()
    assert "- a network in memory, SHA-256" in card
    assert "- accuracy: 0." in card
    json.loads(card.partition("```json")[2].partition("```")[0])


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_what_its_library_would_not_load_is_not_written(tmp_path: Path) -> None:
    parents = [network("ResNet", seed) for seed in (0, 1)]
    result = fuse(parents, {"preset": "fast", "merge.keep_worst": 0.5}, batches())
    with pytest.raises(CheckpointError, match="wider than its library builds it"):
        result.save_pretrained(tmp_path / "child")
    assert list(tmp_path.iterdir()) == []


def test_outputs_with_other_names_are_not_averaged_with_each_other() -> None:
    images = torch.rand(32, 3, 32, 32)

    def named(seed: int, *names: str) -> nn.Module:
        return network("ResNet", seed, id2label=dict(enumerate(names))).eval()

    one = named(0, "ant", "cat", "dog", "fox")
    with pytest.raises(RecipeError, match=r"parent 2 cat, dog, fox, pig: .*`labels`.* \[0, 1, 2, 3\], \[1, 2, 3, 4\]"):
        fuse([one, named(1, "cat", "dog", "fox", "pig")], "fast", images)
    turned = named(1, "cat", "ant", "dog", "fox")
    with pytest.raises(RecipeError, match=r"say so by `labels`, such as \[0, 1, 2, 3\], \[1, 0, 2, 3\]"):
        fuse([one, turned], "fast", images)
    child = fuse(Parents([one, turned], labels=[(0, 1, 2, 3), (1, 0, 2, 3)]), "fast", images).child
    assert list(child.config.id2label.values()) == ["ant", "cat", "dog", "fox"]
    assert turned.config.id2label[0] == "cat"
    other = named(1, "Ant", "Cat", "Dog", "Fox")
    assert fuse(Parents([one, other], labels=[range(4)] * 2), "fast", images).child.config.id2label[0] == "ant"
    fuse([one, network("ResNet", 1)], "fast", images)  # of which nothing but numbers is known
