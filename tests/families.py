"""Tiny models of the causal families that the installed transformers knows, and their table.

`python tests/families.py` writes docs/families.md; tests/models/test_families.py checks it.
"""

import dataclasses
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from paft_ray.config.errors import ConfigError
from paft_ray.models.attention import BLOCK_ATTENTION, takes_blocks
from paft_ray.models.meta import refuse_not_causal
from paft_ray.models.row_check import check_batches, check_rows, read_apart

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
VOCABULARY = 100
_MOST_WEIGHTS = 5_000_000
_WIDTHS = dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model", "embedding_size"), 32)
_WIDTHS |= dict.fromkeys(("lru_width", "word_embed_proj_dim", "hidden_dim"), 32)
_INNER = dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dff", "decoder_ffn_dim"), 48)
_INNER |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16)
_FOUR = (
    *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"),
    *("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"),
    *("num_experts", "num_local_experts", "n_routed_experts", "index_n_heads", "rotary_dim"),
    *("linear_num_value_heads", "time_step_rank"),
)
_TWO = (
    *("num_key_value_heads", "num_experts_per_tok", "num_experts_per_token", "mamba_expand"),
    "linear_num_key_heads",
)
_ONE = ("n_group", "topk_group", "mamba_n_groups", "first_k_dense_replace")
_EIGHT = (
    *("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_topk"),
    *("index_head_dim", "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_chunk_size"),
    *("state_size", "ssm_state_size", "chunk_size", "linear_key_head_dim"),
    "linear_value_head_dim",
)
_SIXTEEN = (
    *("sliding_window", "attention_chunk_size", "attention_window_size", "window_size"),
    *("q_lora_rank", "kv_lora_rank"),
)
_LONG = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
SMALL: Mapping[str, Any] = {
    **_WIDTHS,
    **_INNER,
    **dict.fromkeys(_FOUR, 4),
    **dict.fromkeys(_TWO, 2),
    **dict.fromkeys(_ONE, 1),
    **dict.fromkeys(_EIGHT, 8),
    **dict.fromkeys(_SIXTEEN, 16),
    **dict.fromkeys(_LONG, 256),
    "vocab_size": VOCABULARY,
    "mamba_d_ssm": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"head_dim": None, "num_key_value_heads": 4}
_HYBRID = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT
    ),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu", "dots1"), _LATENT),
    "bailing_hybrid": {"layer_types": _HYBRID},
    "bamba": {"attn_layer_indices": [2]},
    "gemma4_text": {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": {**_LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "reformer": {"is_decoder": True},
    "roc_bert": {"pronunciation_vocab_size": 50, "shape_vocab_size": 50},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "layer_types": None},
    "zaya": {"num_experts_per_tok": 1},
}
"""What makes small configurations whole, for families that other sizes do not fit."""


@dataclass(frozen=True)
class Family:
    """What the package does with a family."""

    name: str
    rows: str
    """`packed`, `unpacked`, `refused` or `not tried`."""
    texts: str
    """`in batches` or `one by one`; empty where it is refused."""
    reason: str

    def line(self) -> str:
        """Return the row of the table."""
        return f"| {self.name} | {self.rows} | {self.texts} | {self.reason} |"


def family_names() -> list[str]:
    """Return the families of the installed transformers with a configuration of their own."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]


def family_config(name: str, **more: Any) -> Any:
    """Return a small configuration."""
    kind = CONFIG_MAPPING[name]
    known = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in SMALL.items() if key in known}
    given |= {key: value for key, value in EXCEPTIONS.get(name, {}).items() if key in known}
    return kind(**{key: value for key, value in (given | more).items() if value is not None})


def build_family(name: str, **more: Any) -> PreTrainedModel:
    """Build a tiny model with weights large enough to show what tokens do to each other."""
    config = family_config(name, **more)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.device("meta"):
        weights = sum(p.numel() for p in kind(config).parameters())
    if weights > _MOST_WEIGHTS:
        raise ValueError(f"no small configuration is known ({weights / 1e6:.0f} million weights)")
    torch.manual_seed(0)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.requires_grad_(False)
    if takes_blocks(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    return model


def family_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbers, one a token."""
    words = {str(number): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="2")


def examine(name: str) -> tuple[Family, PreTrainedModel | None]:
    """Try a family as the package does; returns the model too, as it would be used."""
    try:
        refuse_not_causal(family_config(name), "a model")
        model = build_family(name)
    except ConfigError as error:
        return Family(name, "refused", "", str(error).partition(" is ")[2].partition(";")[0]), None
    except Exception as error:  # noqa: BLE001 - whatever transformers' code raises
        if "validat" in type(error).__name__.lower() or not isinstance(error, ValueError):
            return Family(name, "not tried", "", "no small configuration is known"), None
        return Family(
            name, "not tried", "", str(error).partition(" (")[0].split("\n")[0][:80]
        ), None
    try:
        rows = check_rows(model, 2048, 200)
        if rows:
            read_apart(model)
        texts = check_batches(model, family_tokenizer())
    except ConfigError as error:
        return Family(name, "refused", "", str(error).partition(": ")[2].partition(";")[0]), None
    except Exception as error:  # noqa: BLE001
        reason = f"its own code fails: {type(error).__name__}"
        return Family(name, "not tried", "", reason), None
    reason = "; ".join(filter(None, (_figureless(rows), _figureless(texts))))
    how = "unpacked" if rows else "packed", "one by one" if texts else "in batches"
    return Family(name, *how, reason), model


def _figureless(reason: str) -> str:
    return reason.rpartition(" by ")[0] if " by " in reason else reason.partition(" (")[0]


HEAD = """# Model families

What `paft_ray` does with each family of causal language models of the installed transformers.
Written by `python tests/families.py` from tiny models with random weights, and checked by
`tests/models/test_families.py`. The same checks are made of every model that is loaded, and what
they find for it holds, not this table: a window or a chunk matters only where rows exceed it.

- packed: rows hold several sequences, in training, scoring, probing and serving.
- unpacked: one sequence a row; the log, the report and `summary.json` say so.
- refused: not a causal language model.
- not tried: this test builds no small model of it; a real one is checked when it is loaded.

| family | rows | generated texts | why |
|---|---|---|---|
"""


def write_table(names: list[str]) -> None:
    """Write the table."""
    lines = []
    for name in names:
        lines.append(examine(name)[0].line())
        sys.stderr.write(lines[-1] + "\n")
    TABLE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    write_table(family_names())
