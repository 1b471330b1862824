"""vit-pytorch's variants of the vision transformer."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from depfuse.networks.forward import Example
from experiments.proofs.networks import Make

PLAIN = {"image_size": 32, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 4, "heads": 4, "mlp_dim": 128}
HEADS = {"dim_head": 8}
NESTED = {"image_size": 64, "patch_size": 4, "num_classes": 5, "dim": 16, "heads": 2, "num_hierarchies": 3,
          "block_repeats": (1, 1, 1)}  # fmt: skip
UNNESTED = {name: value for name, value in PLAIN.items() if name != "mlp_dim"}
STAGES = {"num_classes": 5, "dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)}
SCALABLE = {"num_classes": 5, "dim": 16, "heads": (1, 2, 2, 2), "depth": (1, 1, 1, 1)}
Entry = tuple[str, str, dict[str, Any], tuple[int, ...]]
IMAGE, IMAGE_64, IMAGE_224 = (1, 3, 32, 32), (1, 3, 64, 64), (1, 3, 224, 224)
VIDEO = {**PLAIN, "frames": 4, "image_patch_size": 4, "frame_patch_size": 2}
SERIES = {"seq_len": 32, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 4, "heads": 4, "mlp_dim": 128}
VIDEO.pop("patch_size")
# Name -> module, class, settings, shape of the input.
NETWORKS: dict[str, Entry] = {
    "ViT": ("vit", "ViT", {**PLAIN, **HEADS}, IMAGE),
    "SimpleViT": ("simple_vit", "SimpleViT", {**PLAIN, **HEADS}, IMAGE),
    "SimpleViT with qk norm": ("simple_vit_with_qk_norm", "SimpleViT", {**PLAIN, **HEADS}, IMAGE),
    "SimpleViT with registers": ("simple_vit_with_register_tokens", "SimpleViT", {**PLAIN, **HEADS}, IMAGE),
    "SimpleViT with FFT": ("simple_vit_with_fft", "SimpleViT", {**PLAIN, **HEADS, "freq_patch_size": 8}, IMAGE),
    "SimpleViT with value residual": ("simple_vit_with_value_residual", "SimpleViT", {**PLAIN, **HEADS}, IMAGE),
    "SimpleViT with hyper-connections": ("simple_vit_with_hyper_connections", "SimpleViT",
                                         {**PLAIN, **HEADS, "num_residual_streams": 2}, IMAGE),
    "SimpleFlashAttentionViT": ("simple_flash_attn_vit", "SimpleViT", {**PLAIN, **HEADS, "use_flash": True}, IMAGE),
    "SimpleUViT": ("simple_uvit", "SimpleUViT", {**PLAIN, **HEADS}, IMAGE),
    "DeepViT": ("deepvit", "DeepViT", {**PLAIN, **HEADS}, IMAGE),
    "CaiT": ("cait", "CaiT", {**PLAIN, **HEADS, "cls_depth": 1}, IMAGE),
    "CCT": ("cct", "CCT", {"img_size": 32, "embedding_dim": 24, "n_conv_layers": 1, "kernel_size": 7, "stride": 2,
                           "padding": 3, "pooling_kernel_size": 3, "pooling_stride": 2, "pooling_padding": 1,
                           "num_layers": 2, "num_heads": 3, "mlp_ratio": 2.0, "num_classes": 5,
                           "positional_embedding": "learnable"}, IMAGE),
    "CrossViT": ("cross_vit", "CrossViT", {
        "image_size": 32, "num_classes": 5, "depth": 3, "sm_dim": 16, "sm_patch_size": 8, "sm_enc_depth": 1,
        "sm_enc_heads": 2, "sm_enc_mlp_dim": 24, "sm_enc_dim_head": 8, "lg_dim": 24, "lg_patch_size": 16,
        "lg_enc_depth": 4, "lg_enc_heads": 2, "lg_enc_mlp_dim": 32, "lg_enc_dim_head": 8, "cross_attn_depth": 1,
        "cross_attn_heads": 2, "cross_attn_dim_head": 8}, IMAGE),
    "CrossFormer": ("crossformer", "CrossFormer", {
        **STAGES, "dim": (32, 32, 64, 64), "global_window_size": (4, 2, 2, 1), "local_window_size": 2}, IMAGE_64),
    "CvT": ("cvt", "CvT", {"num_classes": 5, "s1_emb_dim": 8, "s1_heads": 1, "s1_depth": 1, "s2_emb_dim": 16,
                           "s2_heads": 2, "s2_depth": 1, "s3_emb_dim": 24, "s3_heads": 3, "s3_depth": 1}, IMAGE_64),
    "LeViT": ("levit", "LeViT", {"image_size": 64, "num_classes": 5, "dim": (16, 24, 32), "depth": 1,
                                 "heads": (2, 3, 4), "mlp_mult": 2, "dim_key": 8, "dim_value": 16}, IMAGE_64),
    "MaxViT": ("max_vit", "MaxViT", {"num_classes": 5, "dim_conv_stem": 8, "dim": 16, "dim_head": 8,
                                     "depth": (1, 1), "window_size": 4}, IMAGE_64),
    "MobileViT": ("mobile_vit", "MobileViT", {"image_size": (64, 64), "dims": [16, 24, 32],
                                              "channels": [8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 48],
                                              "num_classes": 5}, IMAGE_64),
    "NesT": ("nest", "NesT", NESTED, IMAGE_64),
    "ParallelViT": ("parallel_vit", "ViT", {**PLAIN, **HEADS}, IMAGE),
    "PiT": ("pit", "PiT", {**PLAIN, **HEADS, "depth": (1, 1)}, IMAGE),
    "RegionViT": ("regionvit", "RegionViT", {**STAGES, "window_size": 2}, IMAGE_64),
    "RvT": ("rvt", "RvT", PLAIN, IMAGE),
    "ScalableViT": ("scalable_vit", "ScalableViT", {
        **SCALABLE, "ssa_dim_key": (8, 8, 8, 8), "reduction_factor": (4, 2, 2, 1), "window_size": (8, 4, None, None)},
        IMAGE_64),
    "SepViT": ("sep_vit", "SepViT", {**SCALABLE, "dim_head": 8}, IMAGE_224),
    "T2TViT": ("t2t", "T2TViT", {"image_size": 32, "num_classes": 5, "dim": 32, "depth": 8, "heads": 4,
                                 "mlp_dim": 96, "dim_head": 8, "t2t_layers": ((7, 4), (3, 2))}, IMAGE),
    "TwinsSVT": ("twins_svt", "TwinsSVT", {
        "num_classes": 5, **{f"s{n}_emb_dim": 8 * n for n in (1, 2, 3, 4)},
        **{f"s{n}_depth": 1 for n in (1, 2, 3, 4)}, "s1_local_patch_size": 2, "s2_local_patch_size": 2,
        "s3_local_patch_size": 2, "s4_local_patch_size": 2, "s1_global_k": 4, "s2_global_k": 4, "s3_global_k": 2,
        "s4_global_k": 2}, IMAGE_64),
    "ViTDetPool": ("vit_detpool", "ViTDetPool", {**PLAIN, **HEADS}, IMAGE),
    "ViT for small datasets": ("vit_for_small_dataset", "ViT", {**PLAIN, **HEADS}, IMAGE),
    "ViT with patch merger": ("vit_with_patch_merger", "ViT", {**PLAIN, **HEADS, "patch_merge_num_tokens": 4}, IMAGE),
    "ViT with decorrelation": ("vit_with_decorr", "ViT", {**PLAIN, **HEADS}, IMAGE),
    "NormalizedViT": ("normalized_vit", "nViT", {**PLAIN, **HEADS}, IMAGE),
    "XCiT": ("xcit", "XCiT", {**PLAIN, **HEADS, "cls_depth": 1}, IMAGE),
    "ATSViT": ("ats_vit", "ViT", {**PLAIN, **HEADS, "max_tokens_per_depth": (48, 32, 16, 8)}, IMAGE),
    "LookViT": ("look_vit", "LookViT", {
        **UNNESTED, **HEADS, "patch_conv_kernel_size": 3, "highres_patch_size": 4, "patch_size": 8,
        "cross_attn_heads": 2, "cross_attn_dim_head": 8}, IMAGE),
    "ViViT": ("vivit", "ViViT", {**{name: value for name, value in VIDEO.items() if name != "depth"}, **HEADS,
                               "spatial_depth": 1, "temporal_depth": 1, "use_flash_attn": False}, (1, 3, 4, 32, 32)),
    "SimpleViT 3d": ("simple_vit_3d", "SimpleViT", {**VIDEO, **HEADS}, (1, 3, 4, 32, 32)),
    "ViT 3d": ("vit_3d", "ViT", {**VIDEO, **HEADS}, (1, 3, 4, 32, 32)),
    "ViT 1d": ("vit_1d", "ViT", {**SERIES, **HEADS}, (1, 3, 32)),
    "SimpleViT 1d": ("simple_vit_1d", "SimpleViT", {**SERIES, **HEADS}, (1, 3, 32)),
}  # fmt: skip


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, *entry) for name, entry in NETWORKS.items()}


def _make(module: str, kind: str, settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Example]:
    model: nn.Module = getattr(import_module(f"vit_pytorch.{module}"), kind)(**settings)
    return model, torch.randn(shape)
