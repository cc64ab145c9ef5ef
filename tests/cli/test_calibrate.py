"""``pagoda calibrate`` on tiny random models: what it writes serves, what cannot serve is refused before any work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pagoda import LLM, PagodaError, SamplingParams
from pagoda.bench.calibration import CALIBRATORS
from pagoda.bench.calibration.base import run, usual
from pagoda.engine.calibrations import FOLDER, Calibrations
from pagoda.kernels.dispatch import restricted
from pagoda.kernels.torch_threads import torch_threads
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models.families import deepseek_v3
from pagoda.models.load import load_model
from pagoda.models.resolve import resolve
from pagoda.schedule.prediction.trained import read_trained, write_trained

from ..engine.tiny import VOCAB, make_model, prompt
from .conftest import Finished, in_process

IDS = {"vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 512}
WINDOWED = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 48}
QUICK = ["chai", "csr", "coupled_quantization", "kv_heads_compress", "longcache"]


@pytest.fixture
def calibrate(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    return lambda method, model, *more: in_process(capfd, "calibrate", method, str(model), "--length", "400", *more)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No calibrator runs."""

    def fail(*_: object) -> None:
        raise AssertionError("work was done before the refusal")

    for name in CALIBRATORS.names():
        monkeypatch.setattr(CALIBRATORS.module(name), "CALIBRATE", fail)


def answer(model: Path, kv: str) -> list[int]:
    with LLM(str(model), memory="2GiB", kv_memory="1MiB", num_threads=1) as llm:
        how = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, kv=kv)
        output = llm.generate([prompt(3, 90)], how)[0]
        assert output.error is None
        return output.token_ids


@pytest.mark.parametrize("name", QUICK)
def test_what_is_found_serves(calibrate, tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m")
    done = calibrate(name, model, "--json")
    assert done.code == 0, done.err
    path = Calibrations(model).found(name)
    assert done.json["path"] == str(path)
    found = Calibrations(model).load(name)
    assert all(t.shape[0] == 2 and torch.isfinite(t).all() for t in found.values())
    assert len(answer(model, f"{name}(pages=2)" if name == "longcache" else f"{name}(window=8, every=8)")) == 8


@pytest.mark.parametrize("name", ["compresskv", "razor_attention"])
def test_lanterns_files_are_what_the_command_makes_of_it(calibrate, tmp_path: Path, name: str) -> None:
    """But for what another instruction set rounds otherwise."""
    shipped = Calibrations(resolve("lantern")).load(name)
    model = tmp_path / "m"
    shutil.copytree(resolve("lantern"), model)
    assert calibrate(name, model, "--force", "--length", "512").code == 0
    for key, values in Calibrations(model).load(name).items():
        far = (values - shipped[key]).abs() > 1e-3
        assert float(far.float().mean()) < 0.05


def test_sums_do_not_depend_on_the_machines_threads(calibrate, tmp_path: Path, monkeypatch) -> None:
    """Four threads had a codeword of a2ats elsewhere by 0.48. What a file was made of is written in it."""
    monkeypatch.setattr(CALIBRATORS.module("a2ats"), "CASES", 3)
    model, found = tmp_path / "m", []
    shutil.copytree(resolve("lantern"), model)
    for num in (1, 4, 4):
        with torch_threads(num):
            done = calibrate("a2ats", model, "--force", "--length", "256", "--json")
            assert done.code == 0
            assert torch.get_num_threads() == num
        found.append(Path(json.loads(done.out)["path"]).read_bytes())
    assert found[0] == found[1] == found[2]
    with safe_open(model / FOLDER / "a2ats.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes["length"] == 256
    assert notes["text"] == "made up"


def test_a_gguf_file_has_a_folder_of_its_own(calibrate, tmp_path: Path) -> None:
    """Beside it, since other models may lie there; what is found serves, whether the file is named or its folder."""
    pytest.importorskip("gguf")
    from ..models import fake_model
    from ..models.test_gguf import write

    plain = fake_model.write(tmp_path / "plain", max_position_embeddings=512)
    file = write(plain, tmp_path / "quantized" / "m.gguf")
    with pytest.raises(PagodaError, match=re.escape(f"run: pagoda calibrate longcache {file}")):
        answer(file, "longcache(pages=2)")
    done = calibrate("longcache", file, "--json")
    assert done.code == 0, done.err
    assert done.json["path"] == str(tmp_path / "quantized" / "m.gguf.kv-calibration" / "longcache.json")
    assert calibrate("longcache", file.parent).code == 2, "is calibrated"
    assert answer(file, "longcache(pages=2)") == answer(file.parent, "longcache(pages=2)")
    write_trained(file, "trail", {"bias": 1.0}, {})
    assert read_trained(file, "trail") == {"bias": 1.0}
    write(plain, tmp_path / "quantized" / "other.gguf")
    with pytest.raises(PagodaError, match="longcache was not calibrated for this model"):
        answer(file.with_name("other.gguf"), "longcache(pages=2)")


def test_heads_that_look_alike_share_and_others_do_not(calibrate, tmp_path: Path) -> None:
    """Of two kv-heads one cluster has one head's number, and of two clusters each has its own."""
    model = make_model(tmp_path / "m")
    assert calibrate("chai", model).code == 0
    reps = Calibrations(model).load("chai")["reps"]
    assert reps.shape == (2, 2, 2)
    assert (reps[:, 0] == reps[:, 0, :1]).all()
    assert reps[:, 1].sort(-1).values.tolist() == [[0, 1], [0, 1]]


def test_directions_of_pairs_are_orthonormal(calibrate, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    assert calibrate("kv_heads_compress", model).code == 0
    found = Calibrations(model).load("kv_heads_compress")
    assert set(found) == {"keys2", "values2"}
    for basis in found.values():
        assert basis.shape == (2, 1, 16, 8)
        torch.testing.assert_close(basis.transpose(-1, -2) @ basis, torch.eye(8).expand(2, 1, 8, 8), atol=5e-3, rtol=0)


def test_longcache_finds_the_models_frequencies(calibrate, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    assert calibrate("longcache", model).code == 0
    found = Calibrations(model).load("longcache")
    freq = 10_000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(found["freq"] + found["fine"] / 1e5, freq.expand(2, 4), rtol=1e-6, atol=0)


def test_what_is_there_is_not_overwritten_unasked(calibrate, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    assert calibrate("longcache", model).code == 0
    path = Calibrations(model).found("longcache")
    assert path is not None
    path.write_text("mine")
    again = calibrate("longcache", model)
    assert (again.code, path.read_text()) == (2, "mine")
    assert "longcache.json is there already; give --force to write it anew" in again.err
    assert calibrate("longcache", model, "--force").code == 0
    assert json.loads(path.read_text())["method"] == "longcache"


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("name", ["duo_attention", "csr", "all"])
def test_lanterns_own_files_are_left_alone(calibrate, name: str) -> None:
    folder = resolve("lantern") / "kv-calibration"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = calibrate(name, "lantern")
    assert done.code == 2
    assert "is there already; give --force" in done.err
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.usefixtures("never")
def test_schedulers_files_are_left_alone(calibrate, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "schedule-calibration").mkdir()
    (model / "schedule-calibration" / "trail.json").write_text("mine")
    (tmp_path / "asked").write_text("what\n" * 30)
    done = calibrate("trail", model, "--prompts", str(tmp_path / "asked"))
    assert done.code == 2
    assert "trail.json is there already; give --force" in done.err


def test_codecs_of_windowed_models_are_calibrated_and_serve(calibrate, tmp_path: Path) -> None:
    """They drop no slot; what does is refused, as serving refuses it."""
    model = make_model(tmp_path / "m", **WINDOWED)
    assert calibrate("csr", model).code == 0
    assert len(answer(model, "csr(window=8, every=8)")) == 8
    done = calibrate("duo_attention", model)
    assert done.code == 2
    with pytest.raises(PagodaError) as served:
        answer(model, "duo_attention")
    reason = "its attention windows count slots (48)"
    assert reason in done.err
    assert reason in str(served.value)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("name", [name for name in CALIBRATORS.names() if name not in ("a2ats", "longcache")])
def test_a_model_with_latent_kv_is_refused_what_it_cannot_serve(calibrate, latent: Path, name: str) -> None:
    try:
        answer(latent, name)
    except PagodaError as error:
        said = str(error)
    if "was not calibrated" in said:  # it can serve, and the work begins
        with pytest.raises(AssertionError, match="work was done"):
            calibrate(name, latent)
        return
    done = calibrate(name, latent)
    assert done.code == 2
    assert said.partition("cannot run on this model: ")[2] in done.err


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("latent"), **deepseek_v3.FAMILY.tiny() | IDS)


def test_texts_that_are_too_short_for_single_bytes_are_refused(calibrate, tmp_path: Path, monkeypatch) -> None:
    from pagoda.bench.calibration import base

    def fail(*_: object) -> None:
        raise AssertionError("the model ran before the refusal")

    monkeypatch.setattr(base, "run", fail)
    model = make_model(tmp_path / "m")
    for name in ("a2ats", "chai", "compresskv", "duo_attention", "eigen_attention", "less", "lychee_decode"):
        done = calibrate(name, model, "--length", "128")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "texts of 128 tokens cannot hold four facts and a question" in done.err
    assert "give 128 tokens or more" in calibrate("chai", model, "--length", "127").err


def test_all_names_what_it_leaves_out(calibrate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(CALIBRATORS, "names", lambda: ["csr", "duo_attention", "longcache"])
    model = make_model(tmp_path / "m", **WINDOWED)
    done = calibrate("all", model)
    assert done.code == 0
    assert "left out: kv='duo_attention' cannot run on this model: its attention windows" in done.out
    assert [name for name in CALIBRATORS.names() if Calibrations(model).found(name)] == ["csr"]
    assert "one method at a time" in calibrate("duo_attention+quest", model).err
    assert "has no parameter 'atoms'" in calibrate("csr(atoms=2)", model).err


@pytest.mark.parametrize(
    "changes",
    [{}, WINDOWED, {"model_type": "bloom"}],
    ids=["llama", "windows", "alibi"],
)
def test_what_calibrators_see_is_what_the_model_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("model_type") == "bloom":
        from pagoda.models.families import falcon

        changes = falcon.FAMILY.tiny() | IDS | {"alibi": True}
    loaded = load_model(make_model(tmp_path / "m", **changes), dtype="float32")
    ids = prompt(8, 100)
    with restricted("reference"), torch.inference_mode():
        seen = run(loaded.model, ids, usual)
        plain = loaded.model.forward(torch.tensor(ids), torch.arange(100), DenseView(DenseCache(), [0], [100]))
    loaded.close()
    torch.testing.assert_close(seen, plain.float(), rtol=1e-4, atol=1e-4)
