"""The estimate of a step's activations against what a step really allocates, tensor by tensor."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pagoda.kernels import dispatch
from pagoda.kernels.ops import _attention_reference, _paged
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool
from pagoda.kv.storage import PageStorage
from pagoda.kv.view import StepView
from pagoda.models import shape as shapes
from pagoda.models.families import family
from pagoda.models.model import Model
from pagoda.weights.quantization import in_panels

LARGER = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 3}
MEMBERS = ("llama", "bitnet", "gemma2", "gpt_neox", "mixtral", "gpt_oss", "deepseek_v3", "stablelm")
NUM_TOKENS, BEFORE = 256, 256


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that ops make, and the most that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.sizes:
                    self.count(storage)
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        self.sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def larger(name: str) -> dict[str, Any]:
    tiny = family(name).tiny()
    return {**tiny, **{key: value for key, value in LARGER.items() if key in tiny}, "max_position_embeddings": 1024}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MEMBERS)
def test_estimate_covers_a_step(name: str, dtype: str) -> None:
    """A prompt's second chunk: never more than estimated, and the estimate within a factor of four.

    With the reference kernels, whose scratch the estimate counts: the C++ bodies, where they are built, hold less.
    """
    model = Model.from_config(larger(name), dtype=getattr(torch, dtype)).init_random()
    fmt = model.shape.kv_format(16, dtype)
    pool, storage = PagePool(fmt, 64), PageStorage(fmt, 64)
    manager = KVManager(fmt, pool, None)
    manager.admit(0, [0] * (BEFORE + NUM_TOKENS))
    storage.pages.zero_()
    assert manager.reserve(0, BEFORE)
    manager.commit(0, [0] * BEFORE)
    assert manager.reserve(0, NUM_TOKENS)
    view = StepView(storage, [manager.table(0)], [NUM_TOKENS])
    tokens, positions = torch.zeros(NUM_TOKENS, dtype=torch.long), torch.arange(BEFORE, BEFORE + NUM_TOKENS)
    with dispatch.restricted("reference"), torch.inference_mode(), LiveBytes() as live:
        model.logits(model.forward(tokens, positions, view)[-1:])
    estimate = model.shape.activation_bytes(NUM_TOKENS, 1, dtype, max_kv_len=BEFORE + NUM_TOKENS)
    tables = model.shape.table_bytes(BEFORE + NUM_TOKENS, dtype)
    assert live.peak - tables <= estimate <= 4 * live.peak


WIDE = {
    "llama": {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2},
    "qwen3_moe": {"hidden_size": 512, "moe_intermediate_size": 192, "num_experts": 32, "num_experts_per_tok": 8},
    "qwen2_moe": {"hidden_size": 256, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 1024},
    "deepseek_v3": {"hidden_size": 512, "kv_lora_rank": 256, "n_routed_experts": 32, "num_experts_per_tok": 8},
}


@pytest.mark.parametrize("num_tokens", [1, 32, 300, 2048])
@pytest.mark.parametrize("name", WIDE)
def test_estimate_covers_what_a_program_keeps(name: str, num_tokens: int) -> None:
    """Registers of all layers, and of experts a stretch of rows."""
    pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    config = family(name).tiny() | WIDE[name]
    model = Model.from_config(config, dtype=torch.bfloat16, quantization=in_panels("bfloat16")).init_random()
    assert model.op_by_op is None
    estimate = model.shape.activation_bytes(num_tokens, 1, "bfloat16", max_kv_len=num_tokens)
    assert model._decoder._program._program.workspace_bytes(num_tokens) < estimate


def test_scratch_bounds_are_those_of_the_kernels() -> None:
    assert shapes.GATHER_BYTES == _paged.GATHER_BYTES
    assert shapes.QUERY_TILE == _attention_reference.QUERY_TILE
    assert shapes.SCORE_ELEMS == _attention_reference.SCORE_ELEMS
