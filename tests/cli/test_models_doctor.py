from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pagoda.budget import MachineProbe
from pagoda.cli import doctor

from .conftest import in_process, pagoda

CONFIG = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_models_lists_families_the_embedded_model_and_the_cache(
    capfd: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = folder / "hub" / "models--org--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    (snapshot / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "hub" / "models--org--small" / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    data = in_process(capfd, "models", "--json").json
    assert {"llama", "qwen2", "gemma2", "deepseek_v3"} <= set(data["families"])
    found = {model["name"]: model for model in data["models"]}
    assert found["org/small"]["family"] == "llama"
    assert found["org/small"]["where"] == "cache"
    assert found["lantern"]["where"] == "embedded"
    text = in_process(capfd, "models").out
    assert "org/small" in text
    assert "llama" in text
    shown = in_process(capfd, "models", "org/small", "--json").json
    assert shown["layers"] == 3


def test_models_shows_the_bytes_of_one_model_without_loading_it(
    capfd: pytest.CaptureFixture[str], folder: Path
) -> None:
    data = in_process(capfd, "models", str(folder), "--json").json
    embedding, attention, mlp, norms = 1000 * 64, 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 128, 2 * 64
    assert data["parameters"] == embedding + 3 * (attention + mlp + norms) + 64
    assert data["bytes"]["float32"]["weights"] == 4 * data["parameters"]
    assert data["bytes"]["bfloat16"]["kv_per_token"] == 3 * 2 * 2 * 16 * 2
    assert data["bytes"]["float32"]["kv_full_context"] == 256 * 3 * 2 * 2 * 16 * 4
    text = in_process(capfd, "models", str(folder)).out
    assert f"{data['parameters']:,}" in text
    assert "KV per token" in text


def test_models_says_when_a_family_is_not_native(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}))
    assert in_process(capfd, "models", str(tmp_path), "--json").json["native"] is False
    assert "runs through transformers" in in_process(capfd, "models", str(tmp_path)).out


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "cannot be read as JSON"), ("[]", "must hold a JSON object")],
)
def test_a_folder_without_a_readable_config_is_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    done = in_process(capfd, "models", str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("name", ["/no/such/folder", "org/never-heard-of-it", "not a name"])
def test_a_model_that_is_nowhere_is_refused_at_once(capfd: pytest.CaptureFixture[str], name: str) -> None:
    done = in_process(capfd, "models", name)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"pagoda: error: {name}")


def test_doctor_finds_this_machine() -> None:
    done = pagoda("doctor", "--json")
    assert done.code == 0, done.out
    report = done.json
    assert report["works"] is True
    assert report["cpu"]["usable"] == MachineProbe().cpus()
    assert sum(node["cpus"] for node in report["nodes"]["nodes"]) >= report["cpu"]["usable"]
    caches = report["kernels"]["caches"]
    assert not caches or 1 << 12 <= caches[0] < caches[1]
    assert report["libraries"]["torch"].startswith("2.")
    assert "reference" in report["kernels"]["ops"]["paged_attention"]
    assert report["memory"]["default_budget"]["bytes"] > 0
    assert "lantern" in report["models"]["found"]


def test_doctor_speaks_to_people(capfd: pytest.CaptureFixture[str]) -> None:
    done = in_process(capfd, "doctor")
    assert done.code == 0
    named = ("instruction sets", "caches a core", "memory nodes", "default budget", "paged_attention")
    for word in (*named, "Pagoda works here."):
        assert word in done.out


@pytest.mark.parametrize("options", [["--quantization", "int4"], ["--kv-cache-dtype", "int8", "--calibrate"]])
def test_doctor_ignores_no_option_of_a_model(capfd: pytest.CaptureFixture[str], options: list[str]) -> None:
    done = in_process(capfd, "doctor", *options)
    assert done.code == 2
    assert f"{options[0]} {options[1]} is that of --calibrate --model NAME" in " ".join(done.err.split())


def test_doctor_names_what_is_broken_and_what_is_slow() -> None:
    report = {
        "system": "Linux 6 x86_64",
        "cpu": {"features": ["sse4_2"], "usable": 2, "threads_a_core": 1},
        "memory": {
            "default_budget": {"bytes": 0, "reason": "no room"},
            "cgroup_limits": [{"path": "/box", "limit_bytes": 1 << 30}],
        },
        "nodes": {"refused": True, "placement": "pages on nodes 0, 1 in turn"},
        "torch": {"threads": 8},
        "kernels": {"ops": {}, "missing": {"cpu": "no compiler at build time"}},
        "models": {"problem": "lantern: missing"},
    }
    found = doctor.findings(report)
    levels = [finding["level"] for finding in found]
    assert levels == ["broken", "broken", "slow", "slow", "slow", "slow", "note"]
    text = "\n".join(finding["text"] for finding in found)
    slow = ("no compiler", "no AVX2", "OMP_NUM_THREADS=2", "CAP_SYS_NICE")
    for words in ("no room", "lantern: missing", *slow, "1.00 GiB (/box)"):
        assert words in text
    broken = doctor.findings({**report, "torch": {"error": "libgomp is missing"}})
    assert "libgomp is missing" in broken[0]["text"]


@pytest.mark.parametrize("isa", ["avx2", "avx512bf16slow", "amx", None])
def test_doctor_says_when_tiles_are_not_used(isa: str | None) -> None:
    report = {
        "system": "Linux 6 x86_64",
        "cpu": {"features": ["avx2", "amx_tile", "amx_bf16", "amx_int8"], "usable": 2, "threads_a_core": 1},
        "memory": {"default_budget": {"bytes": 1}, "cgroup_limits": []},
        "nodes": {"refused": False},
        "torch": {"threads": 2},
        "kernels": {"ops": {}, "missing": {}, "instruction_set": isa},
        "models": {"problem": None},
    }
    expected = ["slow"] if isa in ("avx2", "avx512bf16slow") else []
    found = doctor.findings(report)
    assert [finding["level"] for finding in found] == expected
    assert all("PAGODA_ISA" in finding["text"] for finding in found)


@pytest.mark.skipif(not importlib.util.find_spec("pagoda.kernels._cpu"), reason="built without the C++ kernels")
def test_doctor_reports_an_instruction_set_that_does_not_exist() -> None:
    done = pagoda("doctor", "--json", env={"PAGODA_ISA": "sse9"})
    assert done.code == 1
    assert done.json["environment"]["PAGODA_ISA"] == "sse9"
    broken = [finding["text"] for finding in done.json["findings"] if finding["level"] == "broken"]
    assert any("unknown instruction set 'sse9' in PAGODA_ISA; accepted: base, avx2" in text for text in broken)


def test_doctor_exits_1_when_nothing_would_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda: {"error": "no torch"})
    done = in_process(capfd, "doctor")
    assert done.code == 1
    assert "Pagoda does not work here" in done.out
