"""Detection networks: what detections are chosen from counts as the output, since few of them are left."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

from depfuse.groups import ChannelGroups, find_groups, not_followed, prove_groups
from depfuse.groups.reasons import CHOSEN, TOUCHES_OUTPUT
from depfuse.models import build_network

SIDE = 64


class Body(nn.Sequential):
    """Two convolutions, of which the last has six channels."""

    out_channels = 6

    def __init__(self) -> None:
        first, second = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 4, 1)
        super().__init__(first, nn.BatchNorm2d(5), nn.ReLU(), second, nn.ReLU())


def faster_rcnn() -> nn.Module:
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    pool = MultiScaleRoIAlign(["0"], 2, 2)
    network = FasterRCNN(Body(), 3, SIDE, SIDE, rpn_anchor_generator=anchors, box_roi_pool=pool)
    network.roi_heads.box_head.fc6, network.roi_heads.box_head.fc7 = nn.Linear(24, 8), nn.Linear(8, 7)
    predictor = network.roi_heads.box_predictor
    predictor.cls_score, predictor.bbox_pred = nn.Linear(7, 3), nn.Linear(7, 12)
    return network


def fcos() -> nn.Module:
    class Wide(Body):
        out_channels = 32

        def __init__(self) -> None:
            super().__init__()
            self.append(nn.Conv2d(6, 32, 1))

    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return FCOS(Wide(), 3, SIDE, SIDE, anchor_generator=anchors)


def ssd() -> nn.Module:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes, self.boxes = nn.Conv2d(6, 2 * 3, 1), nn.Conv2d(6, 2 * 4, 1)

        def forward(self, features):
            (x,) = features
            scores, boxes = self.classes(x), self.boxes(x)
            return {
                "cls_logits": scores.unflatten(1, (2, 3)).permute(0, 3, 4, 1, 2).flatten(1, 3),
                "bbox_regression": boxes.unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3),
            }

    return SSD(Body(), DefaultBoxGenerator([[]], scales=[0.2, 0.4]), (SIDE, SIDE), 3, head=Head())


def proved(network: nn.Module, side: int = SIDE) -> ChannelGroups:
    example = ([torch.rand(3, side, side)],)
    return prove_groups(network.eval(), find_groups(network, example), example)


@pytest.mark.parametrize(
    ("build", "sizes"),
    [(faster_rcnn, [5, 6, 6, 7, 8]), (ssd, [5, 6]), (fcos, None)],
)
def test_small_detectors_are_proved_though_nothing_may_be_detected(build, sizes):
    torch.manual_seed(0)
    groups = proved(build())
    assert groups.proof_error is not None
    assert groups.proof_error <= 1e-9
    assert not not_followed(groups)
    assert groups.covered_share > 0.95
    if sizes is not None:
        assert sorted(group.size for group in groups.free) == sizes


def test_classes_and_coordinates_keep_their_order():
    torch.manual_seed(0)
    network = faster_rcnn()
    groups = proved(network)
    free = {(slot.key, slot.axis) for group in groups.free for slot in group.slots}
    predictor = "roi_heads.box_predictor."
    for key in (predictor + "cls_score.weight", predictor + "bbox_pred.weight", "rpn.head.bbox_pred.weight"):
        assert (key, 1) in free
        assert (key, 0) not in free


class Chosen(nn.Module):
    """Boxes chosen by scores of their own; where none is above the threshold, none is given."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.body, self.score, self.box = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 5)
        self.last, self.threshold = nn.Linear(5, 4), threshold

    def forward(self, x):
        x = self.body(x[0]).relu()
        scores = self.score(x)[:, 0]
        kept = torch.where(scores > self.threshold)[0]
        boxes = self.last(self.box(x[kept]).tanh())
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].abs()], 1)
        return {"boxes": corners[nms(corners, scores[kept], 0.5)]}


@pytest.mark.parametrize("threshold", [0.0, 1e6])
def test_what_follows_a_choice_is_traced_and_proved_also_where_nothing_is_chosen(threshold):
    torch.manual_seed(0)
    network, example = Chosen(threshold), torch.randn(1, 9, 4)
    groups = prove_groups(network, find_groups(network, example), example)
    assert {group.name for group in groups.free} == {"body", "box"}
    assert groups.fixed["last"] == TOUCHES_OUTPUT


class ChosenClass(nn.Module):
    """The entry with the largest score of each row, by its number: the numbers mean something."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scores, self.values = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        x = self.body(x).relu()
        return self.values(x).flatten()[self.scores(x).flatten().argmax(0, keepdim=True)]


def test_channels_chosen_by_their_position_stay():
    torch.manual_seed(0)
    network, example = ChosenClass(), torch.randn(1, 4)
    groups = prove_groups(network, find_groups(network, example), example)
    assert [group.name for group in groups.free] == ["body"]
    assert CHOSEN in groups.fixed["values"]


def test_a_wrong_group_of_a_detector_is_found():
    """Outputs of other shapes than before are a change."""
    torch.manual_seed(0)
    network, example = faster_rcnn().eval(), ([torch.rand(3, SIDE, SIDE)],)
    groups = find_groups(network, example)
    wrong = next(group for group in groups.free if group.name == "rpn.head.conv.0.0")
    object.__setattr__(wrong, "slots", wrong.slots[:-1])
    assert prove_groups(network, groups, example).fixed["rpn.head.conv.0.0"].startswith("not proved")


DETECTORS = [
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fcos_resnet50_fpn",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_torchvision_are_proved(name):
    groups = proved(build_network(f"torchvision:{name}"), 128)
    assert groups.proof_error is not None
    assert groups.proof_error <= 1e-9
    assert not not_followed(groups)
    assert groups.covered_share > 0.95


class Sorted(nn.Module):
    """Chooses boxes above a threshold, and one more for each score by digits of it that a step of 1e-9 changes."""

    runs: ClassVar[list[int]] = []

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(layers)))
        self.scores, self.boxes = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        self.runs.append(len(x))
        x = self.layers(x)
        scores, boxes = self.scores(x), self.boxes(x)
        digits = (scores * 1e9).long() % 5
        return scores[scores > 0], boxes, 100.0 * boxes.gather(1, digits)


def proved_counting_runs(kind):
    """Find and prove the groups of such a network of 20 layers; its `runs` are those of the proof."""
    torch.manual_seed(0)
    network, example = kind(20).eval(), torch.randn(3, 6)
    found = find_groups(network, example)
    kind.runs.clear()
    return prove_groups(network, found, example)


def test_outputs_that_jump_do_not_make_a_proof_permute_group_after_group():
    groups = proved_counting_runs(Sorted)
    assert len(groups.free) == 20
    assert len(Sorted.runs) <= 6  # the outputs, permuted, with gradients, two steps, and one to spare


class Pooling(nn.Module):
    """Pools where it proposes boxes, which has no gradient with respect to the boxes."""

    runs: ClassVar[list[int]] = []

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(layers)))
        self.corners, self.hidden, self.last = nn.Linear(6, 2), nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x):
        self.runs.append(len(x))
        corners = self.corners(self.layers(x))
        boxes = torch.cat([torch.zeros_like(corners), 3.0 + corners.tanh()], 1)
        pooled = roi_align(x.new_ones(1, 1, 8, 8).cumsum(2), [boxes], 2)
        return corners[corners > 0], self.last(self.hidden(pooled.flatten(1)).tanh())


def test_only_what_follows_a_function_without_gradients_is_permuted_group_by_group():
    groups = proved_counting_runs(Pooling)
    assert {group.name for group in groups.free} == {*(f"layers.{number}.0" for number in range(20)), "hidden"}
    assert len(Pooling.runs) <= 8  # the outputs, permuted, with gradients, two steps, for `hidden`, and two to spare
