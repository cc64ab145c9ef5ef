"""transformers' eager ``generate`` with SDPA attention and a static batch; no prefix cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..trace import Trace
from ..worker import Job

FORMS: dict[str, str | None] = {"bf16": None}
KV_BITS = 16


class Engine:
    def __init__(self, job: Job) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(job.threads)
        self._model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._checkpoint = Path(job.checkpoint)

    def info(self) -> dict[str, Any]:
        import torch
        import transformers

        return {
            "version": transformers.__version__,
            "torch": torch.__version__,
            "weight_bytes": (self._checkpoint / "model.safetensors").stat().st_size,
        }

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Clock(StoppingCriteria):
            def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
                trace.mark([ids.shape[1] - len(prompts[0])] * len(prompts))
                return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )  # fmt: skip
