"""Detectors of different classes become one that knows the union: its heads are the parents' side by side."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSDHead

from depfuse import Parents, fuse
from depfuse.errors import DepfuseWarning, RecipeError

KNOWN = (range(3), range(3, 5))
PLAIN = {
    "preset": "fast",
    "align.criterion": "weights",
    "align.solver": "identity",
    "renorm": "none",
    "teach.renorm": "none",
}
"""Parents that are one network but for their heads stay as they are."""


class Tiny(nn.Module):
    """Classes, boxes and centreness from one body."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.inner, self.deep_norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.classes, self.rest = nn.Conv2d(8, classes, 3, 1, 1), nn.Conv2d(8, 5, 3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.enter(x)))
        x = F.relu(x + self.deep_norm(self.inner(x)))
        rest = self.rest(x)
        return {"classes": self.classes(x), "boxes": rest[:, :4], "centre": rest[:, 4:]}


class Wrapped(nn.Module):
    """A backbone of two levels under a head of torchvision's, whose forward gives what is found, as theirs do."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = head

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        raise AssertionError("what is found is no map")


def maps(network: Wrapped, images: Tensor) -> dict[str, Tensor]:
    """Call a detector of torchvision's kind up to its maps."""
    large = network.backbone(images)
    found: dict[str, Tensor] = network.head(list(OrderedDict(a=large, b=network.down(large)).values()))
    return found


def fcos(classes: int) -> Wrapped:
    return Wrapped(FCOSHead(32, num_anchors=1, num_classes=classes, num_convs=1)).eval()


def ssd(classes: int) -> Wrapped:
    return Wrapped(SSDHead([32, 32], [2, 3], classes)).eval()


def images(count: int = 24) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of_one_body(networks: Sequence[nn.Module]) -> list[nn.Module]:
    """Give networks the first one's tensors, where they have one shape, and its statistics."""
    first = networks[0].state_dict()
    for network in networks:
        state = network.state_dict()
        network.load_state_dict(
            {key: first[key] if first[key].shape == own.shape else own for key, own in state.items()}
        )
    return [network.eval() for network in networks]


def test_heads_stand_side_by_side_and_the_body_is_shared() -> None:
    torch.manual_seed(0)
    parents = of_one_body([Tiny(3), Tiny(2)])
    result = fuse(Parents(parents, labels=KNOWN, template=Tiny(5)), PLAIN, images())
    assert result.recipe.task.name == "detection"
    assert "classes, classes; boxes, numbers beside them; centre, numbers beside them" in result.meaning.because
    own, first, second = result.child(images()), *(parent(images()) for parent in parents)
    torch.testing.assert_close(own["classes"], torch.cat([first["classes"], second["classes"]], 1))
    torch.testing.assert_close(own["boxes"], first["boxes"])
    torch.testing.assert_close(own["centre"], first["centre"])


def test_shared_labels_are_averaged_and_shares_are_followed() -> None:
    torch.manual_seed(0)
    parents = of_one_body([Tiny(3), Tiny(2)])
    known = Parents(parents, labels=((0, 1, 2), (2, 3)), template=Tiny(4))
    result = fuse(known, {**PLAIN, "merge.weights": (0.25, 0.75)}, images())
    own, first, second = (network(images())["classes"] for network in (result.child, *parents))
    torch.testing.assert_close(own[:, :2], first[:, :2])
    torch.testing.assert_close(own[:, 2], 0.25 * first[:, 2] + 0.75 * second[:, 0])
    torch.testing.assert_close(own[:, 3], second[:, 1])
    moved = result.at((0.5, 0.5))(images())["classes"]
    torch.testing.assert_close(moved, own)  # one head for all parents, whatever their shares


def test_detectors_of_torchvision_are_called_up_to_their_maps() -> None:
    torch.manual_seed(0)
    parents = of_one_body([fcos(3), fcos(2)])
    result = fuse(Parents(parents, labels=KNOWN, template=fcos(5)), PLAIN, images(), call=maps)
    assert result.recipe.task.name == "detection"
    own, first, second = (maps(network, images()) for network in (result.child, *parents))
    torch.testing.assert_close(own["cls_logits"], torch.cat([first["cls_logits"], second["cls_logits"]], 2))
    torch.testing.assert_close(own["bbox_regression"], first["bbox_regression"])
    torch.testing.assert_close(own["bbox_ctrness"], first["bbox_ctrness"])


def test_background_is_agreed_upon_and_no_no_to_what_a_parent_never_saw() -> None:
    torch.manual_seed(0)
    parents = of_one_body([ssd(4), ssd(3)])
    known = Parents(parents, labels=((0, 1, 2, 3), (0, 4, 5)), template=ssd(6), background=0)
    result = fuse(known, PLAIN, images(), call=maps)
    assert "softmax with background 0" in result.meaning.because
    own, *both = (maps(network, images())["cls_logits"] for network in (result.child, *parents))
    odds = [scores[..., 1:] - scores[..., :1] for scores in both]
    wanted = torch.cat([torch.zeros_like(own[..., :1]), *odds], 2).softmax(2)
    torch.testing.assert_close(own.softmax(2), wanted)


@pytest.mark.parametrize(("build", "labels", "background"), [(fcos, KNOWN, None), (ssd, ((0, 1), (0, 2)), 0)])
def test_detectors_of_torchvision_are_matched_and_refitted(build, labels, background) -> None:
    torch.manual_seed(0)
    count = len({label for own in labels for label in own})
    parents = [build(len(own)) for own in labels]
    known = Parents(parents, labels=labels, template=build(count), background=background)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)  # of networks with random weights
        result = fuse(known, {"refit": {"name": "ridge", "steps": 2}}, images(), call=maps)
    assert len(result.groups.free) >= 2
    assert maps(result.child, images(2))["cls_logits"].shape[-1] == count
    assert any(step.stage == "refit" for step in result.steps)


def test_what_is_no_detector_is_said_in_one_sentence() -> None:
    parents = [Tiny(3).eval(), Tiny(2).eval()]
    known = {"labels": KNOWN, "template": Tiny(5)}
    with pytest.raises(RecipeError, match="`background` is 7, which must be a label of each parent"):
        fuse(Parents(parents, **known, background=7), "fast", images())
    heads = [nn.Sequential(nn.Conv2d(3, count, 1), nn.AvgPool2d(32), nn.Flatten()) for count in (3, 2, 5)]
    with pytest.raises(RecipeError, match="`task=detection` is of networks that return class scores at each place"):
        fuse(Parents(heads[:2], labels=KNOWN, template=heads[2]), "fast", images(), task="detection")
    with pytest.raises(RecipeError, match=r"leave out teach\.labelled and teach\.head"):
        fuse(Parents(parents, **known), {"preset": "fast", "teach.head": "always"}, images())


@pytest.mark.parametrize(
    ("classes", "labels", "template", "message"),
    [
        (
            (3, 3),
            [range(3), range(2, 5)],
            3,
            "no tensor has one for each of the parent's labels, and in the child's one for each of all",
        ),
        (
            (3, 2),
            None,
            None,
            r"has shape \(2, 8, 8\) in parent 2, and \(3, 8, 8\) in parent 1: where they know different",
        ),
    ],
    ids=["head of the child", "labels not said"],
)
def test_heads_that_do_not_fit_are_one_sentence(classes, labels, template, message) -> None:
    networks = [Tiny(count).eval() for count in classes]
    parents = Parents(networks, labels=labels, template=None if template is None else Tiny(template).eval())
    with pytest.raises(RecipeError, match=message):
        fuse(parents, PLAIN, torch.rand(12, 3, 16, 16))


class Logits(Tiny):
    """Class scores called `logits`, as Hugging Face's networks call them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        return {"logits": found["classes"], "pred_boxes": found["boxes"], "hidden_states": found["centre"]}


def test_logits_do_not_leave_out_the_boxes_beside_them() -> None:
    known = Parents([Logits(3).eval(), Logits(2).eval()], labels=KNOWN, template=Logits(5))
    result = fuse(known, PLAIN, torch.rand(8, 3, 32, 32))
    assert result.recipe.task.name == "detection"
    assert "pred_boxes, numbers beside them" in result.meaning.because
    assert "hidden" not in result.meaning.because


def test_scores_of_columns_of_places_have_labels_in_their_last_axis() -> None:
    """As torchvision's heads give them, (N, P, C)."""

    def columns(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return {name: own.flatten(2).mT for name, own in network(images).items()}

    known = Parents([Tiny(3).eval(), Tiny(2).eval()], labels=KNOWN, template=Tiny(5))
    images = torch.rand(8, 3, 32, 32)
    result = fuse(known, PLAIN, images, call=columns, scores=lambda found: found["classes"])
    assert result.recipe.task.name == "dense"
    assert result.child(images)["classes"].shape[1] == 5


def test_boxes_in_the_layer_of_the_classes_are_named() -> None:
    class One(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.enter, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4 + classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.enter(x)))

    known = Parents([One(3).eval(), One(2).eval()], labels=KNOWN, template=One(5))
    with pytest.raises(
        RecipeError, match="the 4 that it gives besides labels, such as boxes, need a layer of their own"
    ):
        fuse(known, PLAIN, torch.rand(8, 3, 32, 32))


def test_class_maps_that_came_out_of_a_sigmoid_are_refused() -> None:
    class Shown(Tiny):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = super().forward(x)
            return {**found, "classes": found["classes"].sigmoid()}

    given = Parents([Shown(count).eval() for count in (3, 2)], labels=KNOWN, template=Shown(5))
    with pytest.raises(RecipeError, match=r"the class scores classes all lie between 0 and 1, .*undo the sigmoid"):
        fuse(given, "fast", torch.rand(40, 3, 16, 16))
