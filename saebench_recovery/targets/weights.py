"""A model's own folder or repository, read without running anything that it brings.

Weights come from safetensors alone, complete and without others. A configuration says what is
built, so it is held to sizes that can be built, and it names no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_file, is_folder, read_json_object

# The largest that is sensible: a larger one takes hours to lay out, before any weight is read.
LARGEST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**23,
    "max_position_embeddings": 2**25,
    "num_experts": 2**14,
    "num_local_experts": 2**14,
}
ATTENTION = (None, "eager", "sdpa")  # other names have a kernel fetched from the hub and run
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHOWN = 3  # names of weights in a message


def read_model(where: str, what: str, **options: Any) -> tuple[Any, Any]:
    """Tokenizer and model from a folder or the hub; `options` are `from_pretrained`'s.

    Raises:
        UserError: there are no weights in safetensors, or not those that the architecture has; or
            the configuration names code, an adapter or sizes that cannot be. Other failures are
            the libraries' own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    _check_folder(Path(where), what)
    hub = {name: value for name, value in options.items() if name == "revision"}
    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **hub)
    _check_config(config, what)
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **hub)
    model, found = AutoModelForCausalLM.from_pretrained(
        where,
        config=config,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter(what)
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(str(key) for key in found[f"{kind}_keys"]):
            more = "" if len(names) <= SHOWN else f" and {len(names) - SHOWN} more"
            raise UserError(f"{what} has {kind} weights: {', '.join(names[:SHOWN])}{more}")
    return tokenizer, model


def _check_folder(folder: Path, what: str) -> None:
    if not is_folder(folder):
        return
    if is_file(folder / "adapter_config.json"):
        raise _adapter(what)
    if is_file(folder / "config.json"):
        read_json_object(folder / "config.json")
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{what} has no weights in safetensors, and {pickles[0]} is a pickle, which can run "
            "code; save the model again with save_pretrained() of a current transformers"
        )


def _adapter(what: str) -> UserError:
    return UserError(f"{what} is an adapter to another model; merge it and save the whole model")


def _check_config(config: Any, what: str) -> None:
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for part in (config, *(part for part in parts if part is not None)):
        if part._attn_implementation not in ATTENTION:
            raise UserError(
                f"{what} names the attention kernel {str(part._attn_implementation)!r}, which is "
                "not fetched and run because a file says so; take it out of config.json"
            )
        for name, largest in LARGEST.items():
            size = getattr(part, name, None)
            if isinstance(size, int) and not 0 <= size <= largest:
                raise UserError(f"{what} has {name} {size}; sensible are 0 to {largest}")
