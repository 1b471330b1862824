"""MONAI's networks: segmentation, classification, registration and generation in two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

from depfuse.networks.forward import Called, Example
from experiments.proofs.networks import Make

VOLUME = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
PICTURE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
HALVINGS = {"channels": (8, 16), "strides": (2, 2)}
DIFFUSION = {"num_res_blocks": 1, "channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 4}
VIT = {"hidden_size": 32, "mlp_dim": 48, "num_heads": 4}


def _picture() -> Tensor:
    return torch.randn(1, 1, 32, 32)


def _colours() -> Tensor:
    return torch.randn(1, 3, 64, 64)


def _volume() -> Tensor:
    return torch.randn(1, 1, 16, 16, 16)


def _volume_32() -> Tensor:
    return torch.randn(1, 1, 32, 32, 32)


def _volume_64() -> Tensor:
    return torch.randn(1, 1, 64, 64, 64)


def _vector() -> Tensor:
    return torch.randn(4, 12)


def _latent() -> Tensor:
    return torch.randn(1, 16)


def _two_pictures() -> Tensor:
    return torch.randn(1, 2, 32, 32)


def _moving_and_fixed() -> list[Tensor]:
    return [torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)]


def _noised() -> dict[str, Tensor]:
    return {"x": _picture(), "timesteps": torch.tensor([7])}


def _noised_in_context() -> dict[str, Tensor]:
    return {**_noised(), "context": torch.randn(1, 3, 12)}


def _controlled() -> dict[str, Tensor]:
    return {**_noised(), "controlnet_cond": torch.randn(1, 1, 256, 256)}


def _segments() -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(3, (1, 32, 32)), 3).permute(0, 3, 1, 2).float()


def _noised_segments() -> dict[str, Tensor]:
    return {**_noised(), "seg": _segments()}


def _pictured_segments() -> list[Tensor]:
    return [_picture(), _segments()]


def _coloured_segments() -> list[Tensor]:
    return [_segments(), _picture()]


def _tokens() -> Tensor:
    return torch.randint(20, (1, 10))


def _bag() -> Tensor:
    return torch.randn(1, 3, 3, 64, 64)


TAKEN = {"ViT": 0, "ViTAutoEnc": 0, "PatchDiscriminator": -1}  # which part of the outputs is no hidden state
# Name -> class, settings, example.
NETWORKS: dict[str, tuple[str, dict[str, Any], Callable[[], Example]]] = {
    "UNet 2d": ("UNet", {**PICTURE, **LEVELS, "num_res_units": 2}, _picture),
    "UNet 3d": ("UNet", {**VOLUME, **LEVELS, "norm": "batch"}, _volume),
    "BasicUNet": ("BasicUNet", {**VOLUME, "features": (8, 8, 16, 16, 24, 8)}, _volume_32),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {**PICTURE, "features": (8, 8, 16, 16, 24, 8)}, _picture),
    "AttentionUnet": ("AttentionUnet", {**PICTURE, **LEVELS}, _picture),
    "DynUNet": ("DynUNet", {**VOLUME, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
                            "filters": [8, 16, 24], "deep_supervision": False, "res_block": True}, _volume),
    "FlexibleUNet": ("FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0",
                                      "decoder_channels": (32, 24, 16, 12, 8)}, _colours),
    "SegResNet": ("SegResNet", {**VOLUME, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, _volume),
    "SegResNetDS": ("SegResNetDS", {**VOLUME, "init_filters": 8, "blocks_down": (1, 1, 1)}, _volume),
    "SegResNetDS2": ("SegResNetDS2", {**VOLUME, "init_filters": 8, "blocks_down": (1, 1, 1)}, _volume),
    "SegResNetVAE": ("SegResNetVAE", {**VOLUME, "input_image_size": (16, 16, 16), "blocks_down": (1, 1, 1),
                                      "blocks_up": (1, 1), "vae_nz": 16, "norm": ("group", {"num_groups": 4})},
                     _volume),
    "VNet": ("VNet", {**VOLUME}, _volume_32),
    "AHNet": ("AHNet", {**PICTURE, "layers": (1, 1, 1, 1)}, lambda: torch.randn(1, 1, 128, 128)),
    "HighResNet": ("HighResNet", VOLUME, _volume),
    "Quicknat": ("Quicknat", {"num_classes": 3, "num_filters": 8}, _picture),
    "MedNeXt": ("MedNeXt", {**VOLUME, "init_filters": 8, "blocks_down": (1, 1, 1, 1), "blocks_bottleneck": 1,
                            "blocks_up": (1, 1, 1, 1), "kernel_size": 3}, _volume_32),
    "DAF3D": ("DAF3D", {"in_channels": 1, "out_channels": 1}, _volume_32),
    "UNETR": ("UNETR", {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8, **VIT}, _volume_32),
    "SwinUNETR": ("SwinUNETR", {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1),
                                "num_heads": (1, 2, 2, 4), "window_size": 4, "spatial_dims": 2},
                  lambda: torch.randn(1, 1, 64, 64)),
    "HoVerNet": ("HoVerNet", {}, lambda: torch.randn(1, 3, 256, 256)),
    "AutoEncoder": ("AutoEncoder", {**PICTURE, **HALVINGS}, _picture),
    "VarAutoEncoder": ("VarAutoEncoder", {"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1,
                                          "latent_size": 6, **HALVINGS}, _picture),
    "VarFullyConnectedNet": ("VarFullyConnectedNet", {"in_channels": 12, "out_channels": 12, "latent_size": 4,
                                                      "encode_channels": (16, 10), "decode_channels": (10, 16)},
                             _vector),
    "FullyConnectedNet": ("FullyConnectedNet", {"in_channels": 12, "out_channels": 3, "hidden_channels": (16, 10)},
                          _vector),
    "AutoencoderKL": ("AutoencoderKL", {**DIFFUSION, "spatial_dims": 2}, _picture),
    "VQVAE": ("VQVAE", {**PICTURE, "out_channels": 1, "channels": (8, 12), "num_res_layers": 1,
                        "num_res_channels": (8, 12), "downsample_parameters": ((2, 4, 1, 1),) * 2,
                        "upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "embedding_dim": 8}, _picture),
    "SPADEAutoencoderKL": ("SPADEAutoencoderKL", {**DIFFUSION, "spatial_dims": 2, "label_nc": 3,
                                                  "spade_intermediate_channels": 8}, _pictured_segments),
    "SPADENet": ("SPADENet", {**PICTURE, "label_nc": 3, "input_shape": [32, 32], "channels": [8, 12, 16], "z_dim": 6,
                              "out_channels": 1, "spade_intermediate_channels": 8}, _coloured_segments),
    "DiffusionModelUNet": ("DiffusionModelUNet", {**PICTURE, **DIFFUSION, "num_head_channels": 4}, _noised),
    "DiffusionModelUNet with context": ("DiffusionModelUNet", {
        **PICTURE, **DIFFUSION, "num_head_channels": 4, "with_conditioning": True, "cross_attention_dim": 12},
        _noised_in_context),
    "SPADEDiffusionModelUNet": ("SPADEDiffusionModelUNet", {
        **PICTURE, **DIFFUSION, "num_head_channels": 4, "label_nc": 3, "spade_intermediate_channels": 8},
        _noised_segments),
    "ControlNet": ("ControlNet", {**DIFFUSION, "spatial_dims": 2, "in_channels": 1, "num_head_channels": 4},
                   _controlled),
    "DecoderOnlyTransformer": ("DecoderOnlyTransformer", {
        "num_tokens": 20, "max_seq_len": 16, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 3},
        _tokens),
    "ViT": ("ViT", {"in_channels": 1, "img_size": 16, "patch_size": 8, "num_layers": 2, "classification": True,
                    **VIT}, _volume),
    "ViTAutoEnc": ("ViTAutoEnc", {"in_channels": 1, "img_size": 32, "patch_size": 16, "num_layers": 2,
                                  "spatial_dims": 2, **VIT}, _picture),
    "MaskedAutoEncoderViT": ("MaskedAutoEncoderViT", {
        "in_channels": 1, "img_size": 32, "patch_size": 8, "num_layers": 2, "spatial_dims": 2, **VIT,
        "decoder_hidden_size": 24, "decoder_mlp_dim": 32, "decoder_num_layers": 1, "decoder_num_heads": 4}, _picture),
    "DenseNet": ("DenseNet", {**VOLUME, "init_features": 8, "growth_rate": 4, "block_config": (2, 2)}, _volume),
    "ResNet": ("resnet18", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 3}, _volume_32),
    "SENet": ("SEResNet50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 3}, _colours),
    "EfficientNetBN": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False, "num_classes": 3},
                       _colours),
    "MILModel": ("MILModel", {"num_classes": 2, "pretrained": False, "backbone": "resnet18"}, _bag),
    "Classifier": ("Classifier", {"in_shape": (1, 32, 32), "classes": 3, **LEVELS}, _picture),
    "Critic": ("Critic", {"in_shape": (1, 32, 32), **LEVELS}, _picture),
    "Discriminator": ("Discriminator", {"in_shape": (1, 32, 32), **LEVELS}, _picture),
    "Regressor": ("Regressor", {"in_shape": (1, 32, 32), "out_shape": (2, 3), **LEVELS}, _picture),
    "Generator": ("Generator", {"latent_shape": (16,), "start_shape": (8, 4, 4), "channels": (12, 8, 1),
                                "strides": (2, 2, 1)}, _latent),
    "PatchDiscriminator": ("PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}, _picture),
    "GlobalNet": ("GlobalNet", {"image_size": [32, 32], "spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8,
                                "depth": 2}, _two_pictures),
    "LocalNet": ("LocalNet", {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8, "out_channels": 2,
                              "extract_levels": (0, 1, 2)}, _two_pictures),
    "RegUNet": ("RegUNet", {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8, "depth": 2,
                            "out_channels": 2}, _two_pictures),
    "VoxelMorphUNet": ("VoxelMorphUNet", {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8,
                                          "channels": (8, 8, 12, 12, 12, 8), "final_conv_channels": (8,)},
                       _two_pictures),
    "VoxelMorph": ("VoxelMorph", {"spatial_dims": 2}, _moving_and_fixed),
}  # fmt: skip


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, *entry) for name, entry in NETWORKS.items()}


def _make(kind: str, settings: dict[str, Any], example: Callable[[], Example]) -> tuple[nn.Module, Example]:
    model: nn.Module = getattr(nets, kind)(**settings)
    taken = TAKEN.get(kind)
    return model, example() if taken is None else Called(example(), partial(_part, taken))


def _part(which: int, model: nn.Module, batch: Any) -> Any:
    """Take one part of the outputs: the others are hidden states, whose channels it would tie to the output."""
    return model(batch)[which]
