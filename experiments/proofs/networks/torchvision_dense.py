"""torchvision's networks beside its classifiers: segmentation, video, detection, keypoints and optical flow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from depfuse.networks.forward import Called, Example
from experiments.proofs.networks import Make

SEGMENTATION = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
                "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")  # fmt: skip
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s")
FLOW = ("raft_small", "raft_large")
DETECTION = ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn",
             "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2",
             "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn",
             "ssd300_vgg16", "ssdlite320_mobilenet_v3_large")  # fmt: skip
FRAMES = dict.fromkeys(("s3d", "mvit_v1_b", "mvit_v2_s"), (16, 224, 224))  # the least that they take
OTHER_FRAMES = (8, 64, 64)


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    kinds = {_segmentation: SEGMENTATION, _video: VIDEO, _flow: FLOW, _detection: DETECTION}
    return {name: partial(make, name) for make, names in kinds.items() for name in names}


def _model(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model


def _segmentation(name: str) -> tuple[nn.Module, Example]:
    return _model(name, weights_backbone=None, num_classes=3, aux_loss=None), torch.randn(1, 3, 64, 64)


def _video(name: str) -> tuple[nn.Module, Example]:
    return _model(name, num_classes=5), torch.randn(1, 3, *FRAMES.get(name, OTHER_FRAMES))


def _flow(name: str) -> tuple[nn.Module, Example]:
    first, second = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    return _model(name), {"image1": first, "image2": second, "num_flow_updates": 2}


def _detection(name: str) -> tuple[nn.Module, Example]:
    """Build a detector, called on a list of images, which it does not enlarge where it takes any size.

    Of the boxes that it proposes and keeps there are a few dozen: a thousand take most of the time.
    """
    boxes = {"topk_candidates": 50, "detections_per_img": 8}
    if "rcnn" in name:
        boxes = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 8}
    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    classes = 2 if name.startswith("keypoint") else 5
    model = _model(name, weights_backbone=None, num_classes=classes, **size, **boxes)
    return model, Called(torch.rand(1, 3, 128, 128), _on_images)


def _on_images(model: nn.Module, batch: Tensor) -> Any:
    return model(list(batch))
