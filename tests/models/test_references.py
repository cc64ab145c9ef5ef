"""Small trained models with recorded greedy tokens: exactly those must come out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pagoda.models.model import Model

from . import parity
from .kv_views import Dense, Paged

DATA = Path(os.environ.get("PAGODA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "models"


@pytest.mark.parametrize("name", ["stories260K", "bitnet-stories-3M"])
def test_tokens_of_the_reference(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set PAGODA_TEST_DATA to the folder that holds models/{name}")
    model = Model.from_config(json.loads((folder / "config.json").read_text()))
    with safe_open(folder / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            model.load_tensor(key, file.get_tensor(key))
    model.finish_loading()
    reference = json.loads((folder / "reference.json").read_text())
    assert model.shape.num_params == reference["n_parameters"]
    prompts = [case["prompt_ids"] for case in reference["prompts"]]
    for view in (Dense(), Paged(model.shape, len(prompts))):
        run = parity.Run(model, view, prompts)
        run.prefill([[3] * len(prompts)])
        run.decode(60)
        for s, case in enumerate(reference["prompts"]):
            assert run.tokens[s][len(prompts[s]) :] == case["greedy_60_ids"]
            last = run.all_logits(s)[len(prompts[s]) - 1]
            for token, logit in case["last_prompt_logits_top5"]:
                assert torch.isclose(last[token], torch.tensor(logit), atol=2e-3)
