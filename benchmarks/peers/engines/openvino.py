"""OpenVINO GenAI's ContinuousBatchingPipeline at its defaults: bf16, KV in u8, int8 activations where quantized."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from ..trace import Trace
from ..worker import Job, SharesByCache

FORMS: dict[str, str | None] = {"bf16": "openvino", "int8": "openvino", "int4": "openvino"}
KV_BITS = 8  # KV_CACHE_PRECISION u8 is its default on a CPU
BATCHED_TOKENS = 8192


class Engine(SharesByCache):
    def __init__(self, job: Job) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = math.ceil(job.kv_bytes / 2**30)
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = job.max_batch
        scheduler.dynamic_split_fuse = True
        self._pipe = genai.ContinuousBatchingPipeline(
            job.checkpoint, scheduler, "CPU", {"INFERENCE_NUM_THREADS": job.threads}
        )
        self._checkpoint, self._ids = Path(job.checkpoint), itertools.count()

    def info(self) -> dict[str, Any]:
        import openvino_genai

        return {
            "version": openvino_genai.__version__,
            "weight_bytes": (self._checkpoint / "openvino_model.bin").stat().st_size,
            "batched_tokens": BATCHED_TOKENS,
        }

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        import numpy as np
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        handles = [
            self._pipe.add_request(next(self._ids), openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for prompt in prompts
        ]
        counts = [0] * len(prompts)
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            for place, handle in enumerate(handles):
                while handle.can_read():
                    counts[place] += sum(len(output.generated_ids) for output in handle.read().values())
            trace.mark(counts)
