"""A tiny random model of every causal architecture that transformers registers, where one can be.

Sizes are set by the names that configurations share; an architecture whose configuration does not
take them, or that stays large with them, is left out with the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from saebench_recovery.base.reading import reason

LARGEST = 3_000_000  # parameters of a tiny model
LAYERS, CONTEXT, VOCABULARY = 4, 64, 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Set where a configuration has them.
FURTHER: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": 8,  # shorter than the prompts of the check, so that it binds
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "decoder_layers": LAYERS,
    "encoder_layers": 1,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "word_embed_proj_dim": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 8,
    "rotary_dim": 4,
    "residual_multiplier": 0.6,  # Granite's, which are 1 by default
    "logits_scaling": 3.0,
}


# Multimodal ones: what they hold beside the decoder stays large, and takes minutes to lay out.
MULTIMODAL = """
    blt dots3_note emu3 fuyu gemma3 gemma4 gemma4_unified gemma4_unified_assistant git got_ocr2
    llama4 mllama moshi moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal qwen3_5
    qwen3_5_moe
"""


class CannotBeTiny(Exception):  # noqa: N818
    """Why there is no tiny model of an architecture."""


def registered() -> list[str]:
    """The model types of all causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(model_type: str) -> Any:
    """A random model whose weights are large enough for errors to show.

    Raises:
        CannotBeTiny: its configuration does not take the sizes, or has others too.
    """
    if model_type in MULTIMODAL.split():
        raise CannotBeTiny("multimodal")
    with quiet():
        try:
            config = _config(model_type)
            with init_empty_weights(include_buffers=False):
                size = sum(p.numel() for p in _model(config).parameters())
        except Exception as error:  # whatever a configuration or its model raises
            raise CannotBeTiny(f"{type(error).__name__}: {reason(error)}") from None
        if size > LARGEST:
            raise CannotBeTiny(f"{size:,} parameters under these sizes")
        torch.manual_seed(0)
        made: nn.Module = _model(config).eval()
        for weight in made.parameters():
            kept = weight.data if weight.ndim == 1 else 0.0  # norms' gains
            weight.data = torch.randn_like(weight) * 0.15 + kept
    return made


def _config(model_type: str) -> Any:
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    sizes = SIZES
    if _has(default, "kv_lora_rank"):  # keys and values of all heads are made from one
        sizes = SIZES | {"num_key_value_heads": 4}
    wanted = {n: v for n, v in sizes.items() if _has(default, n)}
    wanted |= {n: v for n, v in FURTHER.items() if _has(default, n) and _settable(kind, n)}
    try:
        return kind(**wanted)
    except Exception:  # a combination that it does not take
        return kind(**{n: v for n, v in wanted.items() if n in SIZES})


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # of an attribute that differs between layers
        return True


def _settable(kind: type, name: str) -> bool:
    own = getattr(kind, name, None)
    return not (isinstance(own, property) and own.fset is None)


def _model(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries have to say of sizes that nobody uses."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
