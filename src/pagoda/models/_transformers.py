"""The one door to transformers: tokenizer conversion, and the modules behind the fallback. Import it late, it is slow.

Importing what is used here takes 2.5 s and 240 MB, so only models that need it pay for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import ModelError, UnsupportedModelError, WeightsError

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import nn

ATTENTION = "pagoda_paged"


def convert_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, str]]:
    """A folder with ``tokenizer.model`` or ``vocab.json`` + ``merges.txt``, converted; and its named special tokens.

    Raises ModelError when transformers cannot turn it into a fast tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # conversion fails in many ways; each is one line for the user
        raise ModelError(
            f"{folder}: the tokenizer cannot be converted ({one_line(error)}); add a tokenizer.json"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        kind = type(tokenizer).__name__
        raise ModelError(
            f"{folder}: {kind} has no fast form; convert it to a tokenizer.json and put that in the folder"
        )
    return backend, {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def causal_lm(config: Mapping[str, Any]) -> tuple[Any, type[nn.Module]]:
    """The config object and the causal language model class of a config dict.

    Raises UnsupportedModelError naming the architecture and why it cannot run, as far as its config shows it.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    name = str(config.get("model_type"))
    if name not in transformers.CONFIG_MAPPING:
        custom = " (code that comes with a checkpoint is never run)" if "auto_map" in config else ""
        raise UnsupportedModelError(
            f"architecture {name!r} is neither native nor known to transformers {transformers.__version__}{custom}"
        )
    try:
        parsed = transformers.CONFIG_MAPPING[name].from_dict({k: v for k, v in config.items() if k != "model_type"})
    except Exception as error:
        raise ModelError(f"{name} config: transformers refuses it ({one_line(error)})") from error
    known = type(parsed) in MODEL_FOR_CAUSAL_LM_MAPPING
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)] if known else None
    reason = _why_not(config, parsed, kind)
    if reason is not None or kind is None:
        raise UnsupportedModelError(f"architecture {name!r} cannot run on a paged KV cache: {reason}")
    return parsed, kind


def _why_not(config: Mapping[str, Any], parsed: Any, kind: Any) -> str | None:
    if getattr(parsed, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if any(key in config for key in ("vision_config", "audio_config", "speech_config")):
        return "it is a vision-language or audio model, and only text is served"
    if not hasattr(parsed, "num_hidden_layers"):
        return "it is made of several models"
    if kind is None:
        return "transformers has no causal language model of it"
    others = {str(t) for t in getattr(parsed, "layer_types", None) or ()} - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of another kind than attention over all or the last tokens ({', '.join(sorted(others))})"
    if getattr(kind, "_is_stateful", False):
        return "it keeps a recurrent state (state-space or linear attention) beside or instead of KV"
    return None


def has_interface(kind: type[nn.Module]) -> bool:
    """Whether the architecture's file knows the attention interface at all (those that do not write their own)."""
    return hasattr(sys.modules[kind.__module__], "ALL_ATTENTION_FUNCTIONS")


def register_attention(attention: Callable[..., Any], mask: Callable[[Any], Any]) -> None:
    """Makes ``attention`` transformers' implementation named ``ATTENTION``; ``mask(config)`` stands in for masks."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *_, config, **__: mask(config))


def new_module(kind: Any, config: Any, *, dtype: torch.dtype, device: str) -> Any:
    """A causal LM with transformers' random weights and eager attention; device ``meta`` allocates nothing."""
    import torch

    with quiet(), torch.device(device):
        return kind._from_config(config, attn_implementation="eager", dtype=dtype).eval()


def use_paged_attention(module: Any) -> None:
    """From now on ``module`` calls the registered attention."""
    with quiet():
        module.set_attn_implementation(ATTENTION)
        module.config._attn_implementation = ATTENTION  # where a file does not know the interface, masks still ask it


def fill_module(kind: Any, config: Any, tensors: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A causal LM made of ``tensors`` (checkpoint names), renamed and merged as transformers does when it loads.

    Each value is asked once for its tensor, by ``value[...]``, when its turn comes; so a merge of experts holds one
    layer's experts twice, and nothing else is held twice. Raises WeightsError naming missing, unexpected and
    ill-shaped tensors.
    """
    with quiet(), _sequential():
        try:
            module, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:
            raise WeightsError(
                f"transformers cannot load these {config.model_type} weights ({one_line(error)})"
            ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(item) for item in info.get(problem) or ())
        if found:
            shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
            what = {"mismatched_keys": "tensors have the wrong shape", "error_msgs": "tensors cannot be converted"}
            said = what.get(problem) or f"tensors are {problem.removesuffix('_keys')}"
            raise WeightsError(f"{len(found)} {said} in this {config.model_type} checkpoint: {shown}")
    return module.eval()


def given_states(hidden: torch.Tensor) -> Any:
    """What a causal LM's head expects from its decoder, holding these last hidden states."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    given = MoeModelOutputWithPast(last_hidden_state=hidden)
    given.cross_attentions = None  # some heads pass it on
    return given


@contextmanager
def quiet() -> Iterator[None]:
    """Neither transformers' log lines nor its progress bars: what matters is raised."""
    import transformers

    logging: Any = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _sequential() -> Iterator[None]:
    """Otherwise transformers asks for all tensors at once, from four threads, ahead of placing them."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def one_line(error: BaseException) -> str:
    """A foreign error's message without its line breaks, shortened."""
    return " ".join(str(error).split())[:300] or type(error).__name__
