"""Requests drawn at random: lengths, shared beginnings, clients that leave, and for each a method of its own.

What is drawn is a function of the seed alone, so that a failure can be looked at again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pagoda import ConfigError, SamplingParams, Structured
from pagoda.kv.codecs import CODECS
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Stage
from pagoda.schedule.policies import POLICIES as SCHEDULING

BUDGETS = (24, 48, 96, 0.25, 0.5)
SMALL = {"window": 8, "top": 2, "span": 4, "keep_recent": 2, "sinks": 2}
"""What methods take in place of their own choice half of the time, so that short prompts lose something too."""
FORMS = (
    Structured(choice=["yes", "no", "perhaps"]),
    Structured(regex="[a-f]{3,12}(-[0-9]{1,4})*"),
    Structured(json_schema={"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}),
)


@dataclass
class Work:
    ids: list[int]
    params: SamplingParams
    gives_up_after: int | None
    delay: float
    salt: str = ""


def plain_params(rng: random.Random, max_tokens: int) -> SamplingParams:
    """Greedy, and nothing else."""
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


class AnyParams:
    """Everything that a request may ask for, one of ``kvs`` among it; ``all`` of them: any composition."""

    def __init__(self, kvs: Sequence[str], *, offloads: bool) -> None:
        self._draw: Callable[[random.Random], str] = lambda rng: rng.choice(kvs)
        if list(kvs) == ["all"]:
            self._draw = lambda rng: random_kv(rng, offloads=offloads)

    def __call__(self, rng: random.Random, max_tokens: int) -> SamplingParams:
        chosen: dict[str, Any] = {"kv": self._draw(rng), "priority": rng.randrange(3)}
        chosen |= {"temperature": 0} if rng.random() < 0.7 else {"temperature": 0.8, "top_p": 0.9, "top_k": 50}
        kind = rng.choice(["", "", "", "", "n", "stop", "penalty", "logprobs", "form", "eos"])
        if kind == "n":
            chosen |= {"n": rng.randrange(2, 5), "temperature": 1.0}
        elif kind == "stop":
            chosen["stop"] = rng.sample(["e", "th", ". ", "a ", "\n"], 2)
        elif kind == "penalty":
            chosen |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": max_tokens // 2}
        elif kind == "logprobs":
            chosen |= {"logprobs": 3, "prompt_logprobs": rng.choice([None, 2])}
        elif kind == "form":
            chosen["structured"] = rng.choice(FORMS)
        return SamplingParams(seed=5, max_tokens=max_tokens, ignore_eos=kind not in ("eos", "form"), **chosen)


def make_work(
    num: int, vocab: tuple[int, int], seed: int, *, seconds: float, longest: int, most_tokens: int,
    params: Callable[[random.Random, int], SamplingParams] = plain_params,
) -> list[Work]:  # fmt: skip
    """``num`` requests within ``seconds``, of up to ``longest`` tokens drawn from ``range(*vocab)``."""
    rng = random.Random(seed)
    shared = longest // 5
    prefixes = [[rng.randrange(*vocab) for _ in range(shared)] for _ in range(4)]
    work = []
    for _ in range(num):
        length = min(longest, max(1, round(rng.lognormvariate(4.6, 1.4))))
        ids = [rng.randrange(*vocab) for _ in range(length)]
        if rng.random() < 0.3:
            ids = [*rng.choice(prefixes)[: rng.randrange(min(16, shared), shared + 1)], *ids[: shared // 3 + 1]]
        gives_up = rng.randrange(1, 20) if rng.random() < 0.1 else None
        salt = rng.choice(["", "", "", "other"])
        work.append(Work(ids, params(rng, rng.randrange(1, most_tokens)), gives_up, rng.random() * seconds, salt))
    return work


def random_kv(rng: random.Random, *, offloads: bool) -> str:
    """``exact``, or an eviction, a codec, a selection and a tier, or some of them, with budgets at random."""
    while True:
        parts = []
        if rng.random() < 0.65:
            parts.append(_eviction(rng, rng.choice(_of(Stage.EVICTION, Stage.ALLOCATOR))))
        if rng.random() < 0.3:
            parts.append(rng.choice([*_of(Stage.CODEC), *CODECS.names()]))
        if rng.random() < 0.4:
            name = rng.choice(_of(Stage.SELECTION))
            parts.append(f"{name}(pages={rng.choice([2, 4, 8])})" if rng.random() < 0.7 else name)
        if offloads and rng.random() < 0.3:
            parts.append("offload")
        try:
            return parse_policy("+".join(parts) or "exact").spelled
        except ConfigError:  # a composition that makes no sense
            continue


def random_options(rng: random.Random, folder: str) -> dict[str, Any]:
    """How an engine is built; ``folder``: for what it keeps."""
    numbers = {
        "page_size": rng.choice([8, 16, 16, 32]),
        "kv_cache_dtype": rng.choice(["auto", "auto", "bfloat16", "float16", "int8", "fp8", "int4"]),
        "quantization": rng.choice(["auto", "auto", "int8", "int4(group=32)", "nf4"]),
        "dtype": rng.choice(["auto", "auto", "bfloat16"]),
    }
    rest: dict[str, Any] = {
        "kv_memory": rng.choice(["1MiB", "2MiB", "4MiB"]),
        "scheduling": rng.choice([name for name, one in SCHEDULING.items() if not one.needs_training]),
        "max_num_seqs": rng.choice([2, 8, 24, 64]),
        "max_num_batched_tokens": rng.choice([32, 100, 256, 1024]),
        "granularity": rng.choice(["auto", "auto", "layer", "head"]),
        "enable_prefix_caching": rng.random() < 0.75,
        "weights": rng.choice(["resident", "resident", "stream"]),
        "shadow": rng.choice([0.0, 0.0, 0.2]),
        "num_threads": rng.choice([1, 2]),
    }
    if rest["enable_prefix_caching"]:
        rest |= {"kv_host": "1MiB"} if rng.random() < 0.4 else {}
        rest |= {"kv_dir": folder, "disk": "64MiB"} if rng.random() < 0.3 else {}
    if rng.random() < 0.4:
        rest |= {"kv_offload": "16MiB"} | ({"kv_offload_dir": folder} if rng.random() < 0.5 else {})
    return numbers | rest


@cache
def _of(*stages: Stage) -> list[str]:
    return [name for name, policy in POLICIES.items() if policy.stage in stages]  # type: ignore[attr-defined]


def _eviction(rng: random.Random, name: str) -> str:
    """The policy with a budget drawn; an allocator wraps snapkv."""
    policy = POLICIES.get(name)
    if policy.stage is Stage.ALLOCATOR:  # type: ignore[attr-defined]
        return f"{_eviction(rng, 'snapkv')}+{name}"
    budget = rng.choice(BUDGETS)
    fields = {field.name for field in dataclasses.fields(policy)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {"budget": budget} if "budget" in fields else {}
    chosen |= {"local": budget if isinstance(budget, int) else 32} if not chosen and "local" in fields else {}
    chosen |= {key: value for key, value in SMALL.items() if key in fields} if rng.random() < 0.5 else {}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in chosen.items())})"
