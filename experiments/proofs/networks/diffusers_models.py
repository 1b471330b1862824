"""Diffusers' networks from small configurations: U-Nets, transformers and autoencoders of diffusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from depfuse.networks.forward import Example
from experiments.proofs.networks import Make

UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16}
CROSS = {**UNET, "cross_attention_dim": 12, "attention_head_dim": 4,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
AUTOENCODER = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}


def _noised(channels: int = 4, *more: int) -> dict[str, Any]:
    return {"sample": torch.randn(1, channels, *more, 16, 16), "timestep": torch.tensor([7])}


def _noised_colours() -> dict[str, Any]:
    return _noised(3)


def _in_context() -> dict[str, Any]:
    return {**_noised(), "encoder_hidden_states": torch.randn(1, 5, 12)}


def _video_in_context() -> dict[str, Any]:
    return {**_noised(4, 3), "encoder_hidden_states": torch.randn(1, 5, 12)}


def _video_in_one_context() -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 2, 8, 16, 16),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, 1, 12),
        "added_time_ids": torch.rand(1, 3),
    }


def _controlled() -> dict[str, Any]:
    return {**_in_context(), "controlnet_cond": torch.randn(1, 3, 32, 32)}


def _wave() -> dict[str, Any]:
    return {"sample": torch.randn(1, 2, 64), "timestep": torch.tensor([7])}


def _stereo() -> dict[str, Tensor]:
    return {"sample": torch.randn(1, 2, 128)}


def _picture() -> dict[str, Tensor]:
    return {"sample": torch.rand(1, 3, 32, 32)}


def _film() -> dict[str, Tensor]:
    return {"sample": torch.rand(1, 3, 5, 32, 32)}


def _latents(channels: int = 4, *more: int, text: int = 12, length: int = 5) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, channels, *more, 8, 8),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, length, text),
    }


def _labelled() -> dict[str, Any]:
    return {"hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([7]), "class_labels": torch.tensor([3])}


def _captioned() -> dict[str, Any]:
    return {**_latents(), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _pooled() -> dict[str, Any]:
    return {**_latents(), "pooled_projections": torch.randn(1, 10)}


def _tokens(channels: int = 4, length: int = 5) -> dict[str, Any]:
    grid = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
    return {
        "hidden_states": torch.randn(1, 16, channels),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, length, 12),
        "img_ids": grid.reshape(16, 3),
        "txt_ids": torch.zeros(length, 3),
    }


def _flux() -> dict[str, Any]:
    return {**_tokens(), "pooled_projections": torch.randn(1, 10)}


def _masked() -> dict[str, Any]:
    return {**_latents(), "timestep": torch.tensor([0.5]), "encoder_attention_mask": torch.ones(1, 5).bool()}


def _sized() -> dict[str, Any]:
    sizes = {name: torch.tensor([[16.0, 16.0]]) for name in ("original_size", "target_size", "crop_coords")}
    return {**_latents(), **sizes}


def _film_latents() -> dict[str, Any]:
    return _latents(4, 2)


def _frames() -> dict[str, Any]:
    return {**_latents(4), "hidden_states": torch.randn(1, 3, 4, 8, 8)}


def _ltx() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 2 * 4 * 4, 4),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "timestep": torch.tensor([7]),
        "encoder_attention_mask": torch.ones(1, 5).bool(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def _prior() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, 12),
        "timestep": torch.tensor([7]),
        "proj_embedding": torch.randn(1, 12),
        "encoder_hidden_states": torch.randn(1, 5, 12),
    }


def _audio() -> dict[str, Tensor]:
    angle = torch.rand(17, 4)
    return {
        "hidden_states": torch.randn(1, 4, 16),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "global_hidden_states": torch.randn(1, 1, 10),
        "rotary_embedding": (angle.cos(), angle.sin()),
    }


# Class -> settings, example.
NETWORKS: dict[str, tuple[dict[str, Any], Callable[[], Example]]] = {
    "UNet2DModel": ({**UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                     "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4}, _noised_colours),
    "UNet2DConditionModel": (CROSS, _in_context),
    "UNet1DModel": ({"sample_size": 64, "block_out_channels": (32, 32, 64), "extra_in_channels": 64,
                     "layers_per_block": 1}, _wave),
    "UNet3DConditionModel": ({**UNET, "cross_attention_dim": 12, "attention_head_dim": 4,
                              "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
                              "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}, _video_in_context),
    "UNetSpatioTemporalConditionModel": ({
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 12,
        "num_attention_heads": (2, 4), "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}, _video_in_one_context),
    "ControlNetModel": ({**{name: CROSS[name] for name in CROSS.keys() - {"sample_size", "up_block_types"}},
                         "conditioning_embedding_out_channels": (4, 8)}, _controlled),
    "Kandinsky3UNet": ({"time_embedding_dim": 16, "groups": 4, "attention_head_dim": 4, "layers_per_block": 2,
                        "block_out_channels": (8, 16, 32, 64), "cross_attention_dim": 16, "encoder_hid_dim": 12},
                       lambda: {**_in_context(), "encoder_attention_mask": torch.ones(1, 5)}),
    "AutoencoderKL": (AUTOENCODER, _picture),
    "AsymmetricAutoencoderKL": ({
        "down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (8, 16),
        "up_block_types": ("UpDecoderBlock2D",) * 2, "up_block_out_channels": (8, 16), "norm_num_groups": 4}, _picture),
    "AutoencoderTiny": ({"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
                         "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)}, _picture),
    "VQModel": ({**AUTOENCODER, "num_vq_embeddings": 16}, _picture),
    "AutoencoderDC": ({
        "latent_channels": 4, "attention_head_dim": 4, "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 16),
        "decoder_block_out_channels": (8, 16), "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)), "encoder_out_shortcut": False, "decoder_in_shortcut": False}, _picture),
    "AutoencoderOobleck": ({"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2],
                            "decoder_channels": 8, "decoder_input_channels": 4}, _stereo),
    "AutoencoderKLWan": ({"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1,
                          "temperal_downsample": [True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, _film),
    "AutoencoderKLCogVideoX": ({
        "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2,
        "sample_height": 32, "sample_width": 32}, _film),
    "DiTTransformer2DModel": ({**SMALL, "sample_size": 8, "num_embeds_ada_norm": 10, "norm_num_groups": 4}, _labelled),
    "Transformer2DModel": ({**SMALL, "in_channels": 4, "sample_size": 8, "norm_num_groups": 2,
                            "cross_attention_dim": 12}, lambda: {**_latents(), "timestep": None}),
    "PixArtTransformer2DModel": ({**SMALL, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 12,
                                  "norm_num_groups": 4, "use_additional_conditions": False}, _captioned),
    "SD3Transformer2DModel": ({**SMALL, "sample_size": 8, "in_channels": 4, "joint_attention_dim": 12,
                               "caption_projection_dim": 16, "pooled_projection_dim": 10, "out_channels": 4,
                               "pos_embed_max_size": 8}, _pooled),
    "FluxTransformer2DModel": ({"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 1,
                                "num_single_layers": 1, "joint_attention_dim": 12, "pooled_projection_dim": 10,
                                "axes_dims_rope": (4, 6, 6)}, _flux),
    "ChromaTransformer2DModel": ({"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
                                  "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12,
                                  "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 8,
                                  "approximator_hidden_dim": 16, "approximator_layers": 1}, _tokens),
    "SanaTransformer2DModel": ({**SMALL, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
                                "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12,
                                "sample_size": 8}, _latents),
    "Lumina2Transformer2DModel": ({"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
                                   "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
                                   "multiple_of": 8, "axes_dim_rope": (2, 2, 2), "axes_lens": (16, 16, 16),
                                   "cap_feat_dim": 12}, _masked),
    "AuraFlowTransformer2DModel": ({"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
                                    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12,
                                    "caption_projection_dim": 16, "pos_embed_max_size": 16}, _latents),
    "CogView3PlusTransformer2DModel": ({**SMALL, "in_channels": 4, "out_channels": 4, "text_embed_dim": 12,
                                        "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 8,
                                        "sample_size": 8}, _sized),
    "CogVideoXTransformer3DModel": ({**SMALL, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
                                     "text_embed_dim": 12, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
                                     "max_text_seq_length": 5}, _frames),
    "LatteTransformer3DModel": ({**SMALL, "in_channels": 4, "out_channels": 4, "sample_size": 8, "patch_size": 2,
                                 "caption_channels": 12, "cross_attention_dim": 16, "video_length": 2,
                                 "num_embeds_ada_norm": 10, "norm_type": "ada_norm_single"}, _film_latents),
    "LTXVideoTransformer3DModel": ({**SMALL, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16,
                                    "caption_channels": 12}, _ltx),
    "WanTransformer3DModel": ({**SMALL, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
                               "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "rope_max_seq_len": 16}, _film_latents),
    "PriorTransformer": ({**SMALL, "embedding_dim": 12, "num_embeddings": 5, "additional_embeddings": 4}, _prior),
    "StableAudioDiTModel": ({**SMALL, "sample_size": 16, "in_channels": 4, "num_key_value_attention_heads": 2,
                             "out_channels": 4, "cross_attention_dim": 12, "time_proj_dim": 8,
                             "global_states_input_dim": 10, "cross_attention_input_dim": 12}, _audio),
}  # fmt: skip


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, name, *entry) for name, entry in NETWORKS.items()}


def _make(name: str, settings: dict[str, Any], example: Callable[[], Example]) -> tuple[nn.Module, Example]:
    model: nn.Module = getattr(diffusers, name)(**settings)
    return model, example()
