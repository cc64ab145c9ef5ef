"""llama.cpp through llama-cpp-python's low-level functions: one batch of sequences, f16 KV, greedy in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..trace import Trace
from ..worker import Job

FORMS: dict[str, str | None] = {"bf16": "gguf", "int8": "gguf", "int4": "gguf"}
KV_BITS = 16
BATCHED_TOKENS = 4096  # of one llama_decode; it is computed in pieces of n_ubatch = 512, the default
ROUND = 256


class Engine:
    def __init__(self, job: Job) -> None:
        import llama_cpp

        self._api, self._job, self._path = llama_cpp, job, Path(job.checkpoint)
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept alive: C holds a pointer
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            job.checkpoint.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {job.checkpoint}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCHED_TOKENS, 0, 1)
        self._context: Any = None
        self._size = (0, 0, False)

    def info(self) -> dict[str, Any]:
        return {
            "version": self._api.__version__,
            "weight_bytes": self._path.stat().st_size,
            "batched_tokens": BATCHED_TOKENS,
            "system": self._api.llama_print_system_info().decode(),
        }

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        length = len(prompts[0])
        self._open(len(prompts), len(prompts) * -(-(length + new) // ROUND) * ROUND, unified=False)
        items = [(token, at, s) for s, prompt in enumerate(prompts) for at, token in enumerate(prompt)]
        self._run(items, length, new, trace)

    def prepare_shared(self, prefix: list[int]) -> None:
        """Computed once as sequence 0; ``generate_shared`` lets the others refer to its cells."""
        job = self._job
        self._open(job.max_batch, -(-job.kv_tokens // ROUND) * ROUND, unified=True)
        self._decode([(token, at, 0) for at, token in enumerate(prefix)], {})

    def generate_shared(self, prompts: list[list[int]], shared: int, new: int, trace: Trace) -> None:
        memory = self._api.llama_get_memory(self._context)
        for s in range(1, len(prompts)):
            self._api.llama_memory_seq_cp(memory, 0, s, 0, shared)
        rest = [(prompt[at], at, s) for s, prompt in enumerate(prompts) for at in range(shared, len(prompt))]
        self._run(rest, len(prompts[0]), new, trace)

    def _open(self, sequences: int, tokens: int, *, unified: bool) -> None:
        """A context of that size, empty; one that already has it is cleared. Only ``unified`` cells can be shared."""
        api = self._api
        if self._size != (sequences, tokens, unified):
            if self._context:
                api.llama_free(self._context)
            params = api.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_seq_max = tokens, BATCHED_TOKENS, sequences
            params.n_threads = params.n_threads_batch = self._job.threads
            params.kv_unified = unified
            self._context, self._size = api.llama_init_from_model(self._model, params), (sequences, tokens, unified)
            if not self._context:
                raise RuntimeError(f"llama.cpp cannot make a context of {sequences} sequences, {tokens} tokens")
        api.llama_memory_clear(api.llama_get_memory(self._context), True)

    def _run(self, items: list[tuple[int, int, int]], length: int, new: int, trace: Trace) -> None:
        current: dict[int, int] = {}
        last = {s: length - 1 for _, _, s in items}
        for begin in range(0, len(items), BATCHED_TOKENS):
            current |= self._decode(items[begin : begin + BATCHED_TOKENS], last)
            if len(current) == len(last):
                trace.mark([1] * len(last))
        for step in range(1, new):
            at = length + step - 1
            current = self._decode([(token, at, s) for s, token in current.items()], dict.fromkeys(current, at))
            trace.mark([step + 1] * len(current))

    def _decode(self, items: list[tuple[int, int, int]], wanted: dict[int, int]) -> dict[int, int]:
        """Runs (token, position, sequence) items; greedy next token of each whose position is ``wanted``."""
        import numpy as np

        batch, rows = self._batch, []
        batch.n_tokens = len(items)
        for i, (token, at, sequence) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted.get(sequence) == at
            if wanted.get(sequence) == at:
                rows.append(sequence)
        failed = self._api.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        if not rows:
            return {}
        logits = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape=(len(rows), self._vocab))
        return dict(zip(rows, logits.argmax(axis=1).tolist(), strict=True))
