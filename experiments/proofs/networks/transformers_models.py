"""Architectures of Hugging Face's transformers from small configurations: vision, text and audio."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from depfuse.networks.forward import Called, Example
from experiments.proofs.networks import Make

TOKENS, LENGTH = 99, 12
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION = {**PLAIN, "image_size": 32, "patch_size": 8, "num_labels": 5}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32], "num_labels": 5}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4,
        "num_labels": 5}  # fmt: skip
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4],
           "num_labels": 5}  # fmt: skip
TEXT = {**PLAIN, "vocab_size": TOKENS, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 3}
DECODER = {**PLAIN, "vocab_size": TOKENS, "max_position_embeddings": 64, "num_key_value_heads": 2, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}  # fmt: skip
BOTH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": TOKENS,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1, "forced_eos_token_id": 2}  # fmt: skip
WAVES = {**PLAIN, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
         "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
         "vocab_size": TOKENS, "num_labels": 5, "classifier_proj_size": 16}  # fmt: skip


def _image(side: int = 32) -> Tensor:
    return torch.randn(1, 3, side, side)


def _image_64() -> Tensor:
    return _image(64)


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, TOKENS, (1, LENGTH)), "attention_mask": torch.ones(1, LENGTH).long()}


def _pair_of_tokens() -> dict[str, Tensor]:
    return {**_tokens(), "decoder_input_ids": torch.randint(3, TOKENS, (1, LENGTH))}


def _wave() -> Tensor:
    return torch.randn(1, 1600)


def _spectrogram_and_tokens() -> dict[str, Tensor]:
    return {"input_features": torch.randn(1, 16, 40), "decoder_input_ids": torch.randint(3, TOKENS, (1, LENGTH))}


def _frames_and_tokens() -> dict[str, Tensor]:
    return {"input_features": torch.randn(1, 40, 16), "decoder_input_ids": torch.randint(3, TOKENS, (1, LENGTH))}


def _spectrogram() -> Tensor:
    return torch.randn(1, 32, 16)


PREDICTIONS = ("logits", "pred_boxes", "predicted_depth")
# Class -> settings of its configuration, and an example.
NETWORKS: dict[str, tuple[dict[str, Any], Callable[[], Example]]] = {
    "ViTForImageClassification": (VISION, _image),
    "DeiTForImageClassification": (VISION, _image),
    "BeitForImageClassification": (VISION, _image),
    "SwinForImageClassification": (SWIN, _image_64),
    "Swinv2ForImageClassification": (SWIN, _image_64),
    "ConvNextForImageClassification": (STAGES, _image_64),
    "ConvNextV2ForImageClassification": (STAGES, _image_64),
    "ResNetForImageClassification": ({**STAGES, "embedding_size": 8}, _image_64),
    "RegNetForImageClassification": ({**STAGES, "embedding_size": 8, "groups_width": 8}, _image_64),
    "BitForImageClassification": ({**STAGES, "embedding_size": 8, "num_groups": 4,
                                   "hidden_sizes": [16, 32, 48, 64]}, _image_64),
    "MobileNetV2ForImageClassification": ({"depth_multiplier": 0.25, "image_size": 64, "num_labels": 5}, _image_64),
    "MobileViTForImageClassification": ({"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 48],
                                         "image_size": 64, "num_labels": 5}, _image_64),
    "EfficientNetForImageClassification": ({"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64,
                                            "hidden_dim": 320, "num_labels": 5}, _image_64),
    "LevitForImageClassification": ({"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
                                     "depths": [1, 1, 1], "key_dim": [8, 8, 8], "num_labels": 5}, _image_64),
    "CvtForImageClassification": ({"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3],
                                   "num_labels": 5}, _image_64),
    "PvtForImageClassification": ({**PYRAMID, "image_size": 64}, _image_64),
    "PvtV2ForImageClassification": ({**PYRAMID, "image_size": 64}, _image_64),
    "PoolFormerForImageClassification": (STAGES, _image_64),
    "FocalNetForImageClassification": ({"image_size": 64, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2],
                                        "focal_windows": [3, 3], "hidden_sizes": [16, 32], "num_labels": 5},
                                       _image_64),
    "Dinov2ForImageClassification": (VISION, _image),
    "Data2VecVisionForImageClassification": (VISION, _image),
    "SegformerForSemanticSegmentation": ({**PYRAMID, "decoder_hidden_size": 24}, _image_64),
    "DPTForSemanticSegmentation": ({**VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
                                    "neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 16}, _image),
    "YolosForObjectDetection": ({**VISION, "image_size": [32, 32], "num_detection_tokens": 4}, _image),
    "HieraForImageClassification": ({"embed_dim": 16, "image_size": [64, 64], "patch_stride": [4, 4],
                                     "masked_unit_size": [4, 4], "depths": [1, 1, 1], "num_heads": [1, 2, 4],
                                     "num_query_pool": 2, "num_labels": 5}, _image_64),
    "GLPNForDepthEstimation": ({**PYRAMID, "decoder_hidden_size": 16}, _image_64),
    "BertForSequenceClassification": (TEXT, _tokens),
    "RobertaForSequenceClassification": ({**TEXT, "pad_token_id": 1}, _tokens),
    "DistilBertForSequenceClassification": ({**TEXT, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
                                            _tokens),
    "AlbertForSequenceClassification": ({**TEXT, "embedding_size": 16}, _tokens),
    "ElectraForSequenceClassification": ({**TEXT, "embedding_size": 16}, _tokens),
    "MPNetForSequenceClassification": ({**TEXT, "pad_token_id": 1}, _tokens),
    "DebertaV2ForSequenceClassification": ({**TEXT, "relative_attention": True, "position_buckets": 8,
                                            "pos_att_type": ["p2c", "c2p"]}, _tokens),
    "FNetForSequenceClassification": (TEXT, _tokens),
    "RoFormerForSequenceClassification": (TEXT, _tokens),
    "ConvBertForSequenceClassification": ({**TEXT, "embedding_size": 16}, _tokens),
    "ModernBertForSequenceClassification": ({**TEXT, "attn_implementation": "sdpa"}, _tokens),
    "GPT2LMHeadModel": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": TOKENS, "n_positions": 64}, _tokens),
    "GPTNeoXForCausalLM": (DECODER, _tokens),
    "OPTForCausalLM": ({**DECODER, "ffn_dim": 48, "word_embed_proj_dim": 32}, _tokens),
    "BloomForCausalLM": (DECODER, _tokens),
    "LlamaForCausalLM": (DECODER, _tokens),
    "MistralForCausalLM": (DECODER, _tokens),
    "Qwen2ForCausalLM": (DECODER, _tokens),
    "GemmaForCausalLM": (DECODER, _tokens),
    "PhiForCausalLM": (DECODER, _tokens),
    "FalconForCausalLM": ({name: value for name, value in DECODER.items() if name != "head_dim"}, _tokens),
    "MixtralForCausalLM": ({**DECODER, "num_local_experts": 3}, _tokens),
    "MambaForCausalLM": ({**DECODER, "state_size": 4, "time_step_rank": 4}, _tokens),
    "T5ForConditionalGeneration": ({"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                                    "vocab_size": TOKENS, "decoder_start_token_id": 0}, _pair_of_tokens),
    "BartForConditionalGeneration": (BOTH, _pair_of_tokens),
    "MarianMTModel": (BOTH, _pair_of_tokens),
    "Wav2Vec2ForCTC": (WAVES, _wave),
    "HubertForCTC": (WAVES, _wave),
    "WavLMForSequenceClassification": ({**WAVES, "num_buckets": 16, "max_bucket_distance": 40}, _wave),
    "SEWForCTC": ({**WAVES, "squeeze_factor": 2}, _wave),
    "WhisperForConditionalGeneration": ({**BOTH, "num_mel_bins": 16, "max_source_positions": 20,
                                         "max_target_positions": 24}, _spectrogram_and_tokens),
    "Speech2TextForConditionalGeneration": ({**BOTH, "input_feat_per_channel": 16, "conv_channels": 16,
                                             "max_source_positions": 48, "max_target_positions": 24,
                                             "num_conv_layers": 2}, _frames_and_tokens),
    "ASTForAudioClassification": ({**PLAIN, "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
                                   "num_mel_bins": 16, "max_length": 32, "num_labels": 5}, _spectrogram),
}  # fmt: skip


def networks() -> dict[str, Make]:
    """Map names to what builds them."""
    return {name: partial(_make, name, *entry) for name, entry in NETWORKS.items()}


def _make(name: str, settings: dict[str, Any], example: Callable[[], Example]) -> tuple[nn.Module, Example]:
    """Build a network that does not cache what it has computed, called for what it predicts.

    Hidden states that it returns as well are taken out: they would tie their channels to the output.
    """
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**settings, use_cache=False))
    return model, Called(example(), _predictions)


def _predictions(model: nn.Module, batch: Any) -> Tensor:
    """Run a network on a tensor or on inputs by name, and take its predictions; of boxes beside their classes."""
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    return torch.cat([output[name] for name in PREDICTIONS if name in output], -1)
