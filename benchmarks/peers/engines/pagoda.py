"""Pagoda, stepped by its own loop, prefix cache on, tokens handed out as they come, as to a streaming client.

It has room for KV as the others have it. As long as its pool grows, memory comes from the system within steps (1.2 ms
a MiB on a virtual machine whose host hands it out for the first time); they have that behind them before the clock
starts.
"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

from ..trace import Trace
from ..worker import Job, SharesByCache, UnsupportedError

FORMS: dict[str, str | None] = {"bf16": None, "int8": None, "int4": None}
KV_BITS = 16
LEAST_KV_BYTES = 256 << 20  # pages of less than 128 MiB would not lie on huge ones
QUANTIZATION = {"bf16": "auto", "int8": "w8a8", "int4": "w4a8"}


class Engine(SharesByCache):
    KV_CACHE_DTYPE = "auto"

    def __init__(self, job: Job) -> None:
        from pagoda.core.errors import ConfigError
        from pagoda.engine.build import build
        from pagoda.engine.config import EngineConfig
        from pagoda.engine.intake import Intake

        try:
            config = EngineConfig(
                job.folder, dtype="bfloat16", quantization=QUANTIZATION[job.weights], max_model_len=job.max_len,
                max_num_seqs=job.max_batch, num_threads=job.threads, kv_cache_dtype=self.KV_CACHE_DTYPE,
                kv_memory=max(job.kv_bytes * 9 // 8, LEAST_KV_BYTES),
            )  # fmt: skip
        except ConfigError as error:
            raise UnsupportedError(str(error)) from error
        self._built = build(config)
        self._intake, self._ids = Intake(self._built), itertools.count()

    def info(self) -> dict[str, Any]:
        import torch

        import pagoda

        stats = self._built.stats()
        return {
            "version": f"{pagoda.__version__} {_commit()}".strip(),
            "torch": torch.__version__,
            "weight_bytes": stats["memory"]["accounts"]["weights"]["leased_bytes"],
            "quantization": stats["model"]["quantization"],
            "startup_s": stats["startup"],
        }

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        from pagoda import SamplingParams

        engine, params = self._built.engine, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        places: dict[str, int] = {}
        for place, prompt in enumerate(prompts):
            request = self._intake.request(f"r{next(self._ids)}", prompt, params, stream=True)
            places[request.request_id] = place
            engine.add(request)
        counts = [0] * len(prompts)
        while engine.has_work:
            for output in engine.step():
                if output.error:
                    raise RuntimeError(output.error)
                counts[places[output.request_id]] = len(output.outputs[0].token_ids)
            trace.mark(counts)


def _commit() -> str:
    """The commit of the checkout that runs, empty outside of one: the version alone does not name the kernels."""
    from pagoda import __file__ as package

    found = subprocess.run(
        ["git", "-C", str(Path(package).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip()
