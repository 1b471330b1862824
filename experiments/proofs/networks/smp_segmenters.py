"""Every decoder of segmentation_models_pytorch with three encoders."""

from __future__ import annotations

from functools import partial

import segmentation_models_pytorch as smp
import torch
from torch import nn

from depfuse.networks.forward import Example
from experiments.proofs.networks import Make

DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus",
            "UPerNet", "Segformer")  # fmt: skip
ENCODERS = ("resnet18", "mobilenet_v2", "timm-regnetx_002")
VISION_TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224", "tu-vit_small_patch16_224")  # for DPT


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    pairs = [(decoder, encoder) for decoder in DECODERS for encoder in ENCODERS]
    pairs += [("DPT", encoder) for encoder in VISION_TRANSFORMERS]
    return {f"{decoder} {encoder}": partial(_make, decoder, encoder) for decoder, encoder in pairs}


def _make(decoder: str, encoder: str) -> tuple[nn.Module, Example]:
    """Build a network of three classes."""
    pixels = {"DPT": 224, "PAN": 128}.get(decoder, 64)
    model: nn.Module = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3)
    return model, torch.randn(1, 3, pixels, pixels)
