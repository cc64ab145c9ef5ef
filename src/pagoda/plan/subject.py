"""The model of a plan: what its config says, and how the engine would run it. Nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..budget.probe import MachineProbe
from ..core.errors import ConfigError, UnsupportedModelError
from ..core.types import DTYPE_BYTES
from ..models.families import names, read_spec
from ..models.footprint import tokenizer_bytes
from ..models.shape import TINY_PARAMS, ModelShape
from ..weights.quantization import Quantization, in_panels, parse_quantization

TOKENIZER_BYTES_PER_WORD = 46
"""Of tokenizer.json, where there is none to look at (Qwen2.5: 7.0 MB, 151,643 words; Llama 3: 9.1 MB, 128,256)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """``exact_only``: why no lossy KV policy can run on this model, empty where one can. ``streams``: whether its
    matrices can be read from disk as they are multiplied: they run in the dtype in which they are stored.
    """

    name: str
    shape: ModelShape
    dtype: str
    panels: bool
    tokenizer_bytes: int
    exact_only: str = ""
    streams: bool = False

    @classmethod
    def of(
        cls, name: str, config: Mapping[str, Any], *, folder: Path | None = None, probe: MachineProbe | None = None
    ) -> Subject:
        """From config.json. Raises ModelError, UnsupportedModelError or ConfigError, one line each."""
        family = config.get("model_type")
        if family not in names():
            raise UnsupportedModelError(
                f"{name}: {family or 'no model_type'} runs through transformers, and its bytes are known once it is "
                f"loaded; pagoda plan knows: {', '.join(names())}"
            )
        if _packed(config):
            raise ConfigError(
                f"{name}: its weights are packed already ({_packed(config)}); pagoda plan compares formats of plain "
                "checkpoints; give the unpacked model, or run this one: its own needs are added up before it loads"
            )
        spec = read_spec(config)
        shape = ModelShape.from_spec(spec)
        flags = (probe or MachineProbe()).cpu_flags()
        file = None if folder is None else folder / "tokenizer.json"
        size = file.stat().st_size if file is not None and file.is_file() else None
        panels, dtype = bool(flags & {"avx2", "avx512f"}), run_dtype(config, shape.num_params)
        return cls(
            name=name,
            shape=shape,
            dtype=dtype,
            panels=panels,
            streams=panels and dtype == _stated_dtype(config),
            tokenizer_bytes=tokenizer_bytes(TOKENIZER_BYTES_PER_WORD * shape.vocab_size if size is None else size),
            exact_only=_exact_only(spec),
        )

    def quantization(self, text: str) -> Quantization:
        """What ``quantization=text`` comes to on this machine's processor."""
        if text == "auto":
            return in_panels(self.dtype) if self.panels and self.dtype != "float16" else Quantization()
        return parse_quantization(text)


def run_dtype(config: Mapping[str, Any], num_params: int) -> str:
    """The dtype that ``auto`` takes on a CPU for a checkpoint stored as its config says (``models.load.choose_dtype``).

    bfloat16 where the config is silent, as nearly every published checkpoint is stored.
    """
    name = _stated_dtype(config)
    return "float32" if num_params <= TINY_PARAMS or name == "float16" else name


def _stated_dtype(config: Mapping[str, Any]) -> str:
    inner = config.get("text_config")
    stated = [part.get(key) for part in (config, inner or {}) for key in ("dtype", "torch_dtype")]
    found = next((str(s).removeprefix("torch.") for s in stated if isinstance(s, str)), "bfloat16")
    return found if found in DTYPE_BYTES else "bfloat16"


def _packed(config: Mapping[str, Any]) -> str:
    inner = config.get("text_config")
    found = config.get("quantization_config") or (inner or {}).get("quantization_config")
    return str(found.get("quant_method", "unnamed")) if isinstance(found, Mapping) else ""


def _exact_only(spec: Any) -> str:
    layers = [block.attn for block in spec.blocks]
    if any(getattr(attn, "alibi_slopes", ()) for attn in layers):
        return "ALiBi measures distance in slots"
    return "its attention windows count slots" if any(attn.window for attn in layers) else ""
