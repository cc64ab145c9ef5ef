"""Every family on a GPU against itself on the CPU: models and reference ops assume no device."""

from __future__ import annotations

import pytest
import torch

from pagoda.models import families
from pagoda.models.model import Model

from . import parity
from .kv_views import Paged


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", families.names())
def test_same_logits_on_a_gpu(name: str) -> None:
    config = families.family(name).tiny()
    on_cpu = Model.from_config(config).init_random(std=0.2)
    on_gpu = Model.from_config(config, device="cuda").init_random(std=0.2)
    runs = []
    for model, device in ((on_cpu, "cpu"), (on_gpu, "cuda")):
        prompts = parity.prompts(model.shape.vocab_size)
        run = parity.Run(model, Paged(model.shape, len(prompts), device=device), prompts)
        run.prefill(parity.CHUNKS)
        runs.append(run)
    for s in range(len(parity.PROMPT_LENS)):
        ours, theirs = runs[0].all_logits(s), runs[1].all_logits(s)
        assert torch.allclose(ours, theirs, atol=1e-3 * float(ours.abs().max())), f"sequence {s}"
