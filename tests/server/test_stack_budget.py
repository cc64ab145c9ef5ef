"""A served model in bitstack answers `POST /admin/budget` with blocks, while a request runs."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

from pagoda.engine.async_llm import AsyncLLM
from pagoda.models.load import load_model
from pagoda.models.quantize import quantize_model
from pagoda.weights.quantization import parse_quantization

from ..engine.tiny import make_model
from .conftest import running

ASK = {"prompt": [5, 6, 7, 8], "max_tokens": 2, "temperature": 0, "ignore_eos": True}


def test_blocks_go_and_come_back_over_http(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 1}
    plain = make_model(tmp_path / "plain", **sizes)  # a block of more than 1 MiB, in which budgets are said
    packing = parse_quantization("bitstack(blocks=3, rank=1)")
    quantize_model(load_model(plain, quantization="none"), tmp_path / "q", packing)
    shutil.copy(plain / "tokenizer.json", tmp_path / "q")
    llm = AsyncLLM(str(tmp_path / "q"), memory="3GiB", num_threads=1, kv_memory="64KiB", structured_output=False)
    with running(llm) as server:
        whole = llm.loaded.model.weight_bytes
        stacks = llm.loaded.stacks
        assert stacks is not None
        wanted = server.post("/v1/completions", ASK).json()["choices"][0]["text"]
        refused = server.post("/admin/budget", {"memory": "1MiB"})
        least = re.search(r"(\d+)MiB$", refused.json()["error"]["message"])
        assert least is not None
        with server.http.stream("POST", "/v1/completions", json=ASK | {"max_tokens": 24, "stream": True}) as lines:
            parts = lines.iter_lines()
            next(parts)
            assert server.post("/admin/budget", {"memory": f"{least[1]}MiB"}).status_code == 200
            ends = [json.loads(line[6:]) for line in parts if line.startswith("data: {")]
        assert [end["choices"][0]["finish_reason"] for end in ends if end["choices"]][-1] == "length"
        assert stacks.least_bytes <= llm.loaded.model.weight_bytes < whole
        assert "bitstack: " in server.http.get("/admin/stats").json()["model"]["weights"]
        assert server.post("/admin/budget", {"memory": "3GiB"}).status_code == 200
        assert llm.loaded.model.weight_bytes == whole
        assert server.post("/v1/completions", ASK).json()["choices"][0]["text"] == wanted
    asyncio.run(llm.close())
