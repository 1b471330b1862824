"""All architectures of spandrel: super-resolution, denoising, deblurring, inpainting, faces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.networks.forward import Example
from experiments.proofs.networks import Make

PIXELS = 16
SMALL_SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
SMALL_CHANNELS = {"nc": [8, 12, 16, 20], "nb": 1}
# Name -> architecture, class (where it is not the architecture's name), settings, and the shape of the input.
Entry = tuple[str, str, dict[str, Any], Sequence[int]]
NETWORKS: dict[str, Entry] = {
    "ATD": ("ATD", "ATD", {**SMALL_SWIN, "img_size": 16, "category_size": 16, "num_tokens": 8, "upscale": 2,
                           "upsampler": "pixelshuffledirect"}, (3, 16, 16)),
    "AuraSR": ("AuraSR", "AuraSR", {
        "dim": 16, "image_size": 32, "input_image_size": 16, "up_dim_mults": (1, 2), "down_dim_mults": (2,),
        "full_attn": (False, True), "attn_depths": (1, 1), "mid_attn_depth": 1, "resnet_block_groups": 4,
        "self_attn_dim_head": 8, "self_attn_heads": 2,
        "style_network": {"dim_in": 8, "dim_out": 16, "depth": 2}}, (3, 16, 16)),
    "CRAFT": ("CRAFT", "CRAFT", {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}, (3, 16, 16)),
    "Compact": ("Compact", "Compact", {"num_feat": 16, "num_conv": 4}, (3, 16, 16)),
    "DAT": ("DAT", "DAT", {"img_size": 16, "embed_dim": 32, "depth": [2, 2], "num_heads": [2, 2],
                           "split_size": [4, 8]}, (3, 16, 16)),
    "DCTLSA": ("DCTLSA", "DCTLSA", {"nf": 20}, (3, 16, 16)),
    "DITN": ("DITN", "DITN", {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1}, (3, 16, 16)),
    "DRCT": ("DRCT", "DRCT", {**SMALL_SWIN, "img_size": 16, "window_size": 8, "gc": 8, "upscale": 2,
                              "upsampler": "pixelshuffle"}, (3, 16, 16)),
    "DRUNet": ("DRUNet", "DRUNet", {"in_nc": 4, "out_nc": 3, **SMALL_CHANNELS}, (4, 16, 16)),
    "DnCNN": ("DnCNN", "DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 5}, (3, 16, 16)),
    "ESRGAN": ("ESRGAN", "ESRGAN", {"num_filters": 16, "num_blocks": 2}, (3, 16, 16)),
    "FBCNN": ("FBCNN", "FBCNN", {"nc": [8, 12, 16, 512], "nb": 1}, (3, 16, 16)),
    "FDAT": ("FDAT", "FDAT", {"embed_dim": 16, "num_groups": 2, "depth_per_group": 2, "num_heads": 2, "mid_dim": 16},
             (3, 16, 16)),
    "FFTformer": ("FFTformer", "FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
                  (3, 32, 32)),
    "GFPGAN": ("GFPGAN", "GFPGAN", {"out_size": 32, "num_style_feat": 16, "narrow": 1 / 32, "num_mlp": 2},
               (3, 32, 32)),
    "GRL": ("GRL", "GRL", {"img_size": 16, "embed_dim": 16, "depths": [2, 2], "num_heads_window": [2, 2],
                           "num_heads_stripe": [2, 2], "upscale": 2, "upsampler": "pixelshuffle"}, (3, 16, 16)),
    "HAT": ("HAT", "HAT", {**SMALL_SWIN, "img_size": 16, "window_size": 8, "upscale": 2, "num_feat": 16,
                           "squeeze_factor": 3}, (3, 16, 16)),
    "HVICIDNet": ("HVICIDNet", "HVICIDNet", {"channels": [8, 8, 16, 32], "heads": [1, 2, 4, 8]}, (3, 16, 16)),
    "IPT": ("IPT", "IPT", {"patch_size": 12, "n_feats": 8, "num_heads": 2, "num_layers": 1, "scale": [2]},
            (3, 12, 12)),
    "KBNet_l": ("KBNet", "KBNet_l", {"dim": 48, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}, (3, 16, 16)),
    "KBNet_s": ("KBNet", "KBNet_s", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1],
                                     "dec_blk_nums": [1, 1]}, (3, 16, 16)),
    "LaMa": ("LaMa", "LaMa", {"in_nc": 4}, (4, 32, 32)),
    "MMRealSR": ("MMRealSR", "MMRealSR", {
        "num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 2, "num_grow_ch": 8,
        "num_feats": [8, 8, 8, 8], "num_blocks": [1, 1, 1, 1]}, (3, 16, 16)),
    "MixDehazeNet": ("MixDehazeNet", "MixDehazeNet", {"embed_dims": [8, 16, 32, 16, 8], "depths": [1, 1, 1, 1, 1]},
                     (3, 40, 40)),
    "MoESR": ("MoESR", "MoESR", {"dim": 16, "n_blocks": 2, "n_block": 2, "upsample_dim": 16}, (3, 16, 16)),
    "MoSR": ("MoSR", "MoSR", {"n_block": 3, "dim": 16}, (3, 16, 16)),
    "NAFNet": ("NAFNet", "NAFNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}, (3, 16, 16)),
    "OmniSR": ("OmniSR", "OmniSR", {"num_feat": 16, "res_num": 2}, (3, 16, 16)),
    "PLKSR": ("PLKSR", "PLKSR", {"dim": 16, "n_blocks": 3}, (3, 16, 16)),
    "RealPLKSR": ("PLKSR", "RealPLKSR", {"dim": 16, "n_blocks": 3}, (3, 16, 16)),
    "RealPLKSR_dysample": ("PLKSR", "RealPLKSR", {"dim": 16, "n_blocks": 3, "dysample": True}, (3, 16, 16)),
    "RCAN": ("RCAN", "RCAN", {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 16, "reduction": 4}, (3, 16, 16)),
    "RGT": ("RGT", "RGT", {"img_size": 16, "embed_dim": 16, "depth": [2, 2], "split_size": [8, 8]}, (3, 16, 16)),
    "UpCunet2x": ("RealCUGAN", "UpCunet2x", {}, (3, 40, 40)),
    "UpCunet2x_fast": ("RealCUGAN", "UpCunet2x_fast", {}, (3, 40, 40)),
    "UpCunet3x": ("RealCUGAN", "UpCunet3x", {}, (3, 40, 40)),
    "UpCunet4x": ("RealCUGAN", "UpCunet4x", {}, (3, 40, 40)),
    "RestoreFormer": ("RestoreFormer", "RestoreFormer", {
        "n_embed": 32, "embed_dim": 16, "ch": 32, "ch_mult": (1, 1, 2, 2, 2, 2), "num_res_blocks": 1,
        "resolution": 64, "attn_resolutions": (2,), "z_channels": 16, "head_size": 4}, (3, 64, 64)),
    "RetinexFormer": ("RetinexFormer", "RetinexFormer", {"n_feat": 8, "stage": 1}, (3, 16, 16)),
    "SAFMN": ("SAFMN", "SAFMN", {"dim": 16, "n_blocks": 3}, (3, 16, 16)),
    "SAFMNBCIE": ("SAFMNBCIE", "SAFMNBCIE", {"dim": 16, "n_blocks": 2, "num_layers": 2}, (3, 16, 16)),
    "SCUNet": ("SCUNet", "SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64, "input_resolution": 64},
               (3, 64, 64)),
    "SPAN": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16}, (3, 16, 16)),
    "SeemoRe": ("SeemoRe", "SeemoRe", {"num_layers": 2, "embedding_dim": 16, "num_experts": 2}, (3, 16, 16)),
    "SwiftSRGAN": ("SwiftSRGAN", "SwiftSRGAN", {"num_channels": 16, "num_blocks": 2}, (3, 16, 16)),
    "Swin2SR": ("Swin2SR", "Swin2SR", {**SMALL_SWIN, "img_size": 16, "window_size": 8,
                                       "upsampler": "pixelshuffledirect"}, (3, 16, 16)),
    "SwinIR": ("SwinIR", "SwinIR", {**SMALL_SWIN, "img_size": 16, "window_size": 8, "upscale": 2,
                                    "upsampler": "pixelshuffledirect"}, (3, 16, 16)),
    "Uformer": ("Uformer", "Uformer", {"img_size": 128, "embed_dim": 8, "depths": [1] * 9,
                                       "num_heads": [1, 2, 2, 2, 2, 2, 2, 2, 2]}, (3, 128, 128)),
}  # fmt: skip


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, *entry) for name, entry in NETWORKS.items()}


def _make(architecture: str, name: str, settings: dict[str, Any], shape: Sequence[int]) -> tuple[nn.Module, Example]:
    """Build a network, with an image in [0, 1]."""
    module = import_module(f"spandrel.architectures.{architecture}")
    model: nn.Module = getattr(module, name)(**settings)
    image: Tensor = torch.rand(1, *shape)
    if architecture == "LaMa":
        return model, [image[:, :3], (image[:, 3:] > 0.5).float()]
    return model, image
