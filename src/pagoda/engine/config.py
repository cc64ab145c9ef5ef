"""What an engine is built from. Every field has an effect or is refused; automatic choices are made once, at start.

No torch: the command line refuses what is refused here before it loads any. A known KV policy brings torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..budget.default import check_budget
from ..core.errors import ConfigError, choices
from ..core.units import parse_bytes
from ..kv.codecs.base import kv_dtypes
from ..kv.grammar import parse_policy
from ..kv.tiers.codecs.base import parse_page_codec
from ..models.chat import check_template
from ..models.stream_plan import PLACEMENTS
from ..schedule.policies import parse_scheduling
from ..weights.expert_policies import POLICIES as EXPERT_CACHES
from ..weights.quantization import parse_quantization

if TYPE_CHECKING:
    from ..models.shape import ModelShape

PAGE_SIZES = (8, 16, 32, 64, 128)
DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The arguments of ``LLM``; see docs/python-api.md for what each means to a user.

    A step never has more sequences than tokens: ``max_num_seqs`` counts up to ``max_num_batched_tokens``.
    """

    model: str
    memory: str | int | float | None = None
    kv_memory: str | int | None = None
    host_memory: str | int | float | None = None
    device_memory: str | int | float | None = None
    kv: str = "exact"
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    expert_cache: str = "traced"
    spool_dir: str | None = None
    quantization: str = "auto"
    device: str = "auto"
    max_model_len: int | str = "auto"
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    page_size: int = 16
    enable_prefix_caching: bool = True
    scheduling: str = "fcfs"
    chat_template: str | None = None
    granularity: str = "auto"
    num_threads: int | None = None
    structured_output: bool = True
    reserve_bytes: int = 0
    shadow: float = 0.0
    kv_host: str | int | None = None
    kv_host_codec: str = "exact"
    kv_dir: str | None = None
    disk: str | int | None = None
    kv_ttl: float | None = None
    kv_dir_codec: str = "exact"
    kv_offload: str | int | None = None
    kv_offload_dir: str | None = None
    kv_window: str | int | None = None
    audit: bool = False
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigError(f"model is {self.model!r}; give a name, a folder or a hub id, for example 'lantern'")
        if self.dtype not in DTYPES:
            raise ConfigError(choices("dtype", self.dtype, DTYPES))
        if self.kv_cache_dtype not in kv_dtypes():
            raise ConfigError(choices("kv_cache_dtype", self.kv_cache_dtype, kv_dtypes()))
        if self.expert_cache not in EXPERT_CACHES:
            raise ConfigError(choices("expert_cache", self.expert_cache, EXPERT_CACHES))
        if self.weights not in PLACEMENTS:
            raise ConfigError(choices("weights", self.weights, PLACEMENTS))
        if str(self.device).partition(":")[0] not in DEVICES:  # whether it is there is torch's to say
            raise ConfigError(choices("device", str(self.device), "auto, cpu, cuda, cuda:0, …"))
        for name in ("memory", "host_memory", "device_memory"):
            check_budget(getattr(self, name), what=name)
        parse_quantization(self.quantization)
        parse_scheduling(self.scheduling)
        if self.page_size not in PAGE_SIZES:
            raise ConfigError(f"page_size is {self.page_size!r}; accepted: {', '.join(map(str, PAGE_SIZES))}")
        if self.granularity not in ("auto", "sequence", "layer", "head"):
            raise ConfigError(choices("granularity", self.granularity, ("auto", "sequence", "layer", "head")))
        check_share(self.shadow)
        if parse_policy(self.kv).offload and self.kv_offload is None:
            raise ConfigError(f"kv is {self.kv!r}, but kv_offload does not say how many bytes the lower tier has")
        if self.chat_template is not None and "{" in self.chat_template:  # a text; names and files are the model's
            check_template(self.chat_template)
        self._check_counts()
        self._check_disk()
        self._check_offload()

    def _check_disk(self) -> None:
        for name in ("disk", "kv_ttl"):
            if getattr(self, name) is not None and self.kv_dir is None:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but no kv_dir says where; give a folder")
        if self.disk is not None and parse_bytes(self.disk, what="disk") == 0:
            raise ConfigError(f"disk is {self.disk!r}; give a size in bytes above 0, for example '10GiB'")
        if self.kv_ttl is not None and not self.kv_ttl > 0:
            raise ConfigError(f"kv_ttl is {self.kv_ttl!r}; give seconds above 0")
        kept = self.kv_dir is not None or self.kv_host is not None
        for name, place in (("kv_dir_codec", "kv_dir"), ("kv_host_codec", "kv_host")):
            text = getattr(self, name)
            if parse_page_codec(text, option=name) is not None and getattr(self, place) is None:
                raise ConfigError(f"{name} is {text!r}, but there is no {place}; give one, or leave the codec out")
        if self.kv_host is not None and parse_bytes(self.kv_host, what="kv_host") == 0:
            raise ConfigError(f"kv_host is {self.kv_host!r}; give a size in bytes above 0, for example '512MiB'")
        if kept and not self.enable_prefix_caching:
            raise ConfigError(
                "kv_dir and kv_host keep the prefix cache, which is switched off; leave one of the two out"
            )

    def _check_offload(self) -> None:
        for name in ("kv_offload_dir", "kv_window"):
            if getattr(self, name) is not None and self.kv_offload is None:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but kv_offload does not say how many bytes")
        for name in ("kv_offload", "kv_window"):
            if getattr(self, name) is not None and parse_bytes(getattr(self, name), what=name) == 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a size in bytes above 0")

    def _check_counts(self) -> None:
        length = self.max_model_len
        if length != "auto" and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise ConfigError(f"max_model_len is {length!r}; give a number of tokens from 1, or 'auto'")
        if not isinstance(self.reserve_bytes, int) or self.reserve_bytes < 0:
            raise ConfigError(f"reserve_bytes is {self.reserve_bytes!r}; give a whole number of bytes from 0")
        for name in ("max_num_seqs", "max_num_batched_tokens", "num_threads"):
            value = getattr(self, name)
            if value is None and name == "num_threads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number from 1")


def check_share(share: float) -> None:
    """Raises ConfigError for what is no share."""
    if isinstance(share, bool) or not isinstance(share, float | int) or not 0.0 <= share <= 1.0:
        raise ConfigError(f"shadow is {share!r}; give a share of the requests from 0.0 to 1.0, such as 0.01")


def longest_of(config: EngineConfig, shape: ModelShape) -> int:
    """Tokens of the longest sequence that was asked for. Raises ConfigError where positions end before."""
    if config.max_model_len == "auto":
        return shape.max_position
    assert isinstance(config.max_model_len, int)
    if config.max_model_len > shape.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but this model's positions end at {shape.max_position}; "
            "ask for at most that"
        )
    return config.max_model_len
