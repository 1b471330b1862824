"""Sixty networks of pytorchcv: one of each family of classifiers, segmentation, poses, keypoints."""

from __future__ import annotations

from functools import partial

import torch
from pytorchcv.model_provider import get_model
from pytorchcv.models.condensenet import CondenseComplexConv, CondenseLinear
from torch import nn

from depfuse.networks.forward import Example
from experiments.proofs.networks import Make

OF_32_PIXELS = """
    nin_cifar10 resnet20_cifar10 preresnet20_cifar10 seresnet20_cifar10 pyramidnet110_a48_cifar10
    densenet40_k12_cifar10 xdensenet40_2_k24_bc_cifar10 ror3_56_cifar10 rir_cifar10
    shakeshakeresnet20_2x16d_cifar10 shakedropresnet20_cifar10 diaresnet20_cifar10 fractalnet_cifar10
"""
OF_64_PIXELS = "resnetd50b resnesta18 isqrtcovresnet18 regnetx002 tresnet_m dicenet_w1"
OF_224_PIXELS = """
    bninception airnet50_1x64d_r16 bam_resnet18 cbam_resnet18 squeezenet_v1_1 sqnxt23_w1 shufflenet_g3_wd4
    shufflenetv2_wd2 menet108_8x1_g3 mobilenet_wd4 mobilenetv2_wd4 igcv3_wd4 mnasnet_small channelnet irevnet301
    bagnet9 dla34 hrnet_w18_small_v1 vovnet27s selecsls42b hardnet39ds condensenet74_c4_g4 sparsenet121 peleenet
    octresnet10_ad2 senet16 sknet50 diracnet18v2 dpn68 darts proxylessnas_mobile fbnet_cb ghostnet espnetv2_wd2
    mixnet_s efficientnet_b0 ibn_resnet50 sharesnet18 resattnet56 drnc26 scnet50
"""
SIDES = {32: OF_32_PIXELS, 64: OF_64_PIXELS, 224: OF_224_PIXELS}


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, name, side) for side, names in SIDES.items() for name in names.split()}


def _make(name: str, side: int) -> tuple[nn.Module, Example]:
    """Build a network; in CondenseNet each group of filters reads channels of its own choice, as after training."""
    settings = {} if side == 32 else {"in_size": (side, side), "num_classes": 10}
    model: nn.Module = get_model(name, pretrained=False, **settings)
    for module in model.modules():
        if isinstance(module, CondenseComplexConv):
            channels, groups = len(module.index), module.conv.groups
            module.index.copy_(torch.cat([torch.randperm(channels)[: channels // groups] for _ in range(groups)]))
        elif isinstance(module, CondenseLinear):  # half of them
            module.index.copy_(torch.randperm(2 * len(module.index))[: len(module.index)])
    return model, torch.randn(1, 3, side, side)
