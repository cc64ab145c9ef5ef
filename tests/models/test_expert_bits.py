"""Experts in formats of their own: the numbers of the model in memory, exact bytes, and more of them in a cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.cli.main import main
from pagoda.core.errors import ConfigError, ModelError, WeightsError
from pagoda.models.catalog import read_config
from pagoda.models.expert_bits import _watch, expert_bits
from pagoda.models.load import load_model
from pagoda.models.placement import Room
from pagoda.models.quantize import quantize_model
from pagoda.models.shape import ModelShape
from pagoda.models.stream_plan import plan_experts
from pagoda.plan.demand import Demand
from pagoda.plan.machine import Machine
from pagoda.plan.plans import Planner
from pagoda.plan.subject import Subject
from pagoda.weights.expert_store import ExpertMemory
from pagoda.weights.quantization import Quantization, parse_format, parse_quantization

from . import fake_model
from .test_expert_cache import PROMPTS, SHAPE

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

MIX = ["fp32", "bf16", "int8", "int4(group=32)", "int4", "w4a8(group=32)", "w8a8", "int4(group=32, symmetric=True)"]
"""Formats of eight experts, beginning elsewhere in every layer."""
TEXT = [list(range(start, start + 40)) for start in (5, 60, 150)]


def mixed_bits(shape: ModelShape) -> Quantization:
    found = {
        f"{m.name}@{e}": parse_format(MIX[(e + number) % len(MIX)])
        for number, m in enumerate(m for m in shape.matrices if m.role == "experts")
        for e in range(m.count)
    }
    return Quantization(linear=parse_format("int8"), overrides=found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model.write(tmp_path_factory.mktemp("moe") / "m", **SHAPE)


@pytest.fixture(scope="module")
def folder(plain: Path) -> Path:
    loaded, out = load_model(plain, quantization="none"), plain.parent / "mixed"
    quantize_model(loaded, out, mixed_bits(loaded.shape))
    return out


def cached(folder: Path, cache_bytes: int, **options: Any) -> Any:
    whole = load_model(folder, weights="stream", room=lambda *_: Room(0, 0))
    least = whole.stream
    whole.close()
    room = least.num_bytes - least.cache_bytes + cache_bytes
    return load_model(folder, weights="stream", room=lambda *_: Room(room, room), **options)


def test_every_expert_comes_back_in_its_own_format(plain: Path, folder: Path) -> None:
    """Each as if its whole stack were in that format; all bytes as declared, on disk and in memory."""
    loaded = load_model(folder)
    alike = {text: load_model(plain, quantization=text).model.weights() for text in MIX}
    for name, stack in loaded.model.weights().items():
        if name.endswith(("gate_up", "experts_down")):
            for expert, matrix in enumerate(stack.experts):
                text = next(text for text in MIX if parse_format(text).same_codes(matrix.format))
                assert torch.equal(matrix.dense(), alike[text][name][expert].dense()), (name, expert)
    assert loaded.model.weight_bytes == loaded.shape.weight_bytes(loaded.dtype, loaded.quantization)
    assert str(loaded.quantization).count(" + ") == len(MIX) - 1
    planned = Subject.of("m", read_config(str(folder)), folder=folder)
    found = Planner(planned, Machine.guess(), None, Demand(16, 8), 4 << 30).plans()
    assert {plan.accounts.weights for plan in found} == {loaded.model.weight_bytes}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_tokens_are_those_of_the_model_in_memory(folder: Path, share: float) -> None:
    """Bit for bit, layer by layer, from the smallest cache to one that holds all; never more bytes than it has."""
    whole, total = load_model(folder), load_model(folder, weights="stream").stream
    few = cached(folder, int(share * total.num_experts * 3 * 32 * 64 * 4))
    held, memory = few.experts._held, few.experts._memory
    for step in range(4):
        x = torch.randn(6, 64, generator=torch.Generator().manual_seed(step))
        for ours, theirs in zip(few.model._decoder.blocks, whole.model._decoder.blocks, strict=True):
            assert torch.equal(ours.mlp(x), theirs.mlp(x))
            assert sum(slot.memory.nbytes for slot in held.values()) <= memory.num_bytes == few.stream.cache_bytes
    assert len({slot.memory.nbytes for slot in held.values()}) > 1 or share == 0
    few.close()


def test_a_request_streams_with_the_same_tokens(folder: Path) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    answers = []
    for weights in ("resident", "stream"):
        with LLM(str(folder), memory="4GiB", weights=weights) as llm:
            answers.append([out.token_ids for out in llm.generate(PROMPTS, params)])
    assert answers[0] == answers[1]


def test_more_experts_fit_where_they_have_fewer_bits(plain: Path) -> None:
    shape = ModelShape.from_config(fake_model.CONFIG | SHAPE)
    eight, four = (parse_quantization(text) for text in ("int8", "int4(group=32)"))
    half = {f"{m.name}@{e}": four.linear for m in shape.matrices if m.role == "experts" for e in range(4)}
    half |= {f"{m.name}@{e}": eight.linear for m in shape.matrices if m.role == "experts" for e in range(4, 8)}
    slots = []
    for found in (eight, replace(eight, overrides=half), four):
        least = plan_experts(shape, "float32", found, 0)
        plan = plan_experts(shape, "float32", found, least.num_bytes - least.cache_bytes + 60_000)
        assert plan.cache_bytes <= 60_000
        slots.append(plan.expert_slots)
    assert slots[0] < slots[1] < slots[2]


def test_memory_of_one_size_makes_room_for_another() -> None:
    memory = ExpertMemory(100)
    first, second = memory.take(40), memory.take(60)
    assert first is not None
    assert second is not None
    assert memory.take(10) is None
    memory.give_back(first)
    assert memory.take(60) is None
    assert memory.take(40) is not None, "the same piece"
    memory.give_back(second)
    assert [memory.take(30), memory.take(30)] != [None, None], "60 went back to the system for two of 30"
    assert memory.take(1) is None


def test_bits_go_where_much_is_asked(tmp_path: Path) -> None:
    """Experts that few tokens chose have fewer bits than those that many did; less is lost than by uniform bits."""
    folder = fake_model.write(tmp_path / "m", **SHAPE)
    tensors = fake_model.weights(fake_model.CONFIG | SHAPE)
    fake_model.save(
        folder, {n: t * (8 if "experts" in n else 20 if "mlp.gate" in n else 1) for n, t in tensors.items()}
    )
    loaded = load_model(folder, quantization="none")
    others, candidates = parse_quantization("int8"), [parse_format(text) for text in ("int8", "int4(group=32)")]
    eight = loaded.shape.weight_bytes(loaded.dtype, others)
    four = eight - 24 * sum(candidates[0].num_bytes(*m) - candidates[1].num_bytes(*m) for m in ((64, 64), (64, 32)))
    found = expert_bits(loaded, others, candidates, (eight + four) // 2, TEXT)
    report = quantize_model(loaded, tmp_path / "out", found.quantization)
    again = load_model(tmp_path / "out")
    assert report.bytes_after == again.model.weight_bytes <= (eight + four) // 2
    assert found.lost < 0.8 * expert_bits(loaded, others, candidates[1:], four, TEXT).lost
    for layer, watching in _watch(loaded.model, TEXT).items():
        formats = [found.quantization.of(f"layers.{layer}.mlp.gate_up", "experts", e) for e in range(8)]
        many, few = ([u.count for u, f in zip(watching.uses, formats, strict=True) if f == c] for c in candidates)
        assert not many or not few or mean(many) > mean(few), layer


def test_a_cut_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cut"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    formats = config["quantization_config"]["formats"]
    formats["layers.1.mlp.gate_up@3"] = "int4(group=64)" if "int4" not in formats["layers.1.mlp.gate_up@3"] else "int8"
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"pagoda.layers.1.mlp.gate_up@3:"):
        load_model(broken, weights="stream")
    (broken / "config.json").write_text((folder / "config.json").read_text())
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-64])
    with pytest.raises((WeightsError, ModelError), match=r"model.safetensors.*lm_head|model.safetensors: tensor"):
        load_model(broken, weights="stream")


def test_the_command(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a girl who had a cat. " * 8)
    arguments = ["--method", "edgemoe", "--format", "int8", "--size", "180KiB", "--text", str(text), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(plain), str(tmp_path / "out"), *arguments])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["bytes_after"] <= 180 << 10
    loaded = load_model(fake_model.write(tmp_path / "dense"), quantization="none")
    with pytest.raises(ConfigError, match=r"for mixtures of experts; .*llama.* is none"):
        expert_bits(loaded, parse_quantization("int8"), [parse_format("int8")], 1 << 20, TEXT)
