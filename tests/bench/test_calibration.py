"""``pagoda calibrate``: what it finds in lantern, whose second layer does the recalling; what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pagoda.bench.calibration import CALIBRATORS, a2ats, duo_attention, less, locret, lychee_decode
from pagoda.bench.calibration.base import Seen, run, usual
from pagoda.bench.quality.tasks.base import World
from pagoda.core.errors import ConfigError, ModelError, RequestError
from pagoda.engine.calibrations import FOLDER, Calibrations
from pagoda.kernels.dispatch import restricted
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._rotary import turn
from pagoda.kv.policies.a2ats import nearest
from pagoda.kv.policies.base import Need
from pagoda.kv.policies.locret import judge
from pagoda.models.load import load_model


@pytest.fixture(scope="module")
def loaded():
    found = load_model("lantern", dtype="float32")
    yield found
    found.close()


@pytest.fixture(autouse=True)
def plain_torch() -> Iterator[None]:
    with restricted("reference"):
        yield


def wanting() -> list[str]:
    made = [(name, POLICIES.get(name)()) for name in POLICIES.names()]  # type: ignore[operator]
    return [name for name, policy in made if Need.CALIBRATION in getattr(policy, "needs", ())]


def test_every_policy_that_wants_a_calibration_has_its_command_and_lanterns_file(loaded) -> None:
    assert wanting() == CALIBRATORS.names()
    for name in wanting():
        found = Calibrations(loaded.path).load(name)
        assert found
        assert all(t.shape[0] == 4 and torch.isfinite(t).all() for t in found.values())


def test_kernels_restore_what_an_eviction_leaves_out(loaded, monkeypatch) -> None:
    monkeypatch.setattr(less, "STEPS", 30)
    monkeypatch.setattr(less, "CASES", 4)
    found, notes = less.calibrate(loaded.model, World.make(loaded.tokenizer, 128), loaded.shape)
    assert found["q_map"].shape == (4, 4, 64, less.FEATURES)
    lost = notes["lost"]
    assert isinstance(lost, dict)
    assert all(x <= y for x, y in zip(lost["with"], lost["without"], strict=True))
    helped = [layer for layer in range(4) if lost["with"][layer] < 0.9 * lost["without"][layer]]
    assert helped
    for layer in set(range(4)) - set(helped):  # features of nothing, or of a little
        assert torch.isfinite(found["k_bias"][layer]).all()


@pytest.mark.parametrize("name", ["razor_attention", "compresskv"])
def test_lanterns_induction_heads_are_found(loaded, name) -> None:
    world = World.make(loaded.tokenizer, 192)
    found, _ = CALIBRATORS.get(name)(loaded.model, world, loaded.shape)  # type: ignore[operator]
    assert found["query_heads"].shape == (4, 4)
    assert int(found["query_heads"].amax(1).argmax()) == 1
    assert torch.isfinite(found["query_heads"]).all()


def test_gates_are_trained(loaded, monkeypatch) -> None:
    """Eight steps are enough for the heads of layer 1 to be held up and the others to sink."""
    monkeypatch.setattr(duo_attention, "STEPS", 8)
    monkeypatch.setattr(duo_attention, "CASES", 2)
    monkeypatch.setattr(duo_attention, "RATE", 0.1)
    world = World.make(loaded.tokenizer, 192)
    found, _ = duo_attention.calibrate(loaded.model, world, loaded.shape)
    gates = found["heads"]
    assert float(gates[1].min()) > float(gates[[0, 2, 3]].max())


def test_retaining_heads_learn_what_is_asked_for(loaded, monkeypatch) -> None:
    """A network trained for a moment already ranks the tokens of running text as later queries do."""
    monkeypatch.setattr(locret, "CASES", 6)
    monkeypatch.setattr(locret, "STEPS", 60)
    monkeypatch.setattr(locret, "RATE", 0.02)
    world = World.make(loaded.tokenizer, 160)
    found, _ = locret.calibrate(loaded.model, world, loaded.shape)
    (shown,), (aims,) = ([x[1]] for x in locret._examples(loaded.model, world, loaded.shape))
    said = judge(shown[1], {name: t[1] for name, t in found.items()})
    for head in range(2):
        known = ~aims[1][:, head].isnan()
        both = torch.stack([said[known, head], aims[1][known, head]])
        assert float(torch.corrcoef(both)[0, 1]) > 0.4


def test_features_that_never_change_get_no_weight(monkeypatch) -> None:
    """Ternary layers have channels that are always zero: divided by next to nothing, their weights were infinite in
    float16.
    """
    monkeypatch.setattr(locret, "STEPS", 20)
    torch.manual_seed(3)
    shown = [torch.randn(40, 12) * 1e-3 for _ in range(4)]
    for one in shown:
        one[:, 2], one[:, 7] = 0.0, 0.5
    found, _ = locret._train(shown, [one[:, :2].clone() for one in shown])
    assert not found["w1"][[2, 7]].any()
    assert all(torch.isfinite(t.half()).all() for t in found.values())
    moved = shown[0].clone()
    moved[:, 2] = 9.0
    assert torch.equal(judge(moved, found), judge(shown[0], found))
    assert found["w1"][[0, 1]].all()


def test_roles_of_heads_are_trained(loaded, monkeypatch) -> None:
    """Layer 1 recalls: a few steps are enough for its gates to be held up and those above it to sink."""
    monkeypatch.setattr(lychee_decode, "STEPS", 10)
    monkeypatch.setattr(lychee_decode, "CASES", 2)
    monkeypatch.setattr(lychee_decode, "RATE", 0.3)
    world = World.make(loaded.tokenizer, 192)
    found, _ = lychee_decode.calibrate(loaded.model, world, loaded.shape)
    assert float(found["heads"][1].max()) > float(found["heads"][2:].max())
    assert found["ranks"][0].tolist() == [-1.0, -1.0]
    assert sorted(found["ranks"][1:].flatten().tolist()) == pytest.approx([n / 6 for n in range(6)])


def test_codewords_stand_for_keys_at_any_position(loaded, monkeypatch) -> None:
    """Unrotated keys are the same wherever the text begins, and scores from codewords rank keys as true ones do."""
    monkeypatch.setattr(a2ats, "CASES", 3)
    world = World.make(loaded.tokenizer, 192)
    found, notes = a2ats.calibrate(loaded.model, world, loaded.shape)
    assert notes["error"] < 0.35
    seen: list[Seen] = []
    for first in (0, 77):
        with torch.inference_mode():
            run(loaded.model, world.running_text(1, 64), usual, seen.append, first)
    at, freq = torch.arange(64), found["freq"][1]
    early, late = (turn(s.k.transpose(0, 1), -at - first, freq) for s, first in ((seen[1], 0), (seen[5], 77)))
    assert torch.allclose(early, late, atol=2e-3)
    learned = {name: t[1] for name, t in found.items()}
    near = learned["codes"].gather(1, nearest(early, learned)[..., None].expand(early.shape))
    query = turn(seen[1].q.transpose(0, 1)[::2], -at, freq)[:, -1:]
    both = torch.stack([(query * keys).sum(-1)[1] for keys in (early, near)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8


def test_weights_are_halved_and_leased(tmp_path: Path) -> None:
    wide = {"w1": torch.randn(2, 40, 30)}
    path = Calibrations(tmp_path).save("locret", wide, {"length": 9})
    assert path.suffix == ".safetensors"
    asked: list[int] = []
    store = Calibrations(tmp_path, lambda _, num_bytes: not asked.append(num_bytes))  # type: ignore[func-returns-value]
    assert torch.equal(store.load("locret")["w1"], wide["w1"].half().float())
    store.load("locret")
    assert asked == [2 * 40 * 30 * 4]
    with pytest.raises(RequestError, match="the calibration of locret takes 9.38 KiB, and what others read"):
        Calibrations(tmp_path, lambda *_: False).load("locret")
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="is not a calibration file"):
        Calibrations(tmp_path).load("locret")


def test_numbers_that_float16_cannot_hold_stay_float32(tmp_path: Path) -> None:
    found = {"w1": torch.tensor([1e6, 0.5]).repeat(1, 600), "b1": torch.ones(1, 9)}
    store = Calibrations(tmp_path)
    store.save("locret", found, {})
    assert torch.equal(store.load("locret")["w1"], found["w1"])


@pytest.mark.parametrize("size", [1, 600])
def test_numbers_that_are_not_finite_are_neither_written_nor_served(tmp_path: Path, size) -> None:
    """In JSON and in safetensors."""
    bad = {"heads": torch.tensor([[0.5, torch.inf]]).repeat(1, size), "more": torch.ones(1, size)}
    store = Calibrations(tmp_path)
    store.save("locret", {"heads": torch.ones(1, 2 * size)}, {})
    with pytest.raises(ConfigError, match=rf"heads: {size} of {2 * size}\), and nothing was written; .* --length"):
        store.save("locret", bad, {})
    assert store.load("locret")["heads"].eq(1).all()
    monkey = pytest.MonkeyPatch()
    monkey.setattr("pagoda.engine.calibrations._not_finite", lambda found: "")  # as files of before
    path = store.save("locret", bad, {})
    monkey.undo()
    with pytest.raises(ModelError, match=rf"{path.name} holds .* \(heads: {size} of .*calibrate locret .* --force"):
        Calibrations(tmp_path).load("locret")


def test_files_are_read_strictly(tmp_path: Path) -> None:
    store = Calibrations(tmp_path)
    with pytest.raises(ConfigError, match="razor_attention was not calibrated for this model; run: pagoda calibrate"):
        store.load("razor_attention")
    path = store.save("razor_attention", {"heads": torch.tensor([[0.5, 1.0]])}, {"length": 9})
    assert store.load("razor_attention")["heads"].tolist() == [[0.5, 1.0]]
    assert json.loads(path.read_text())["notes"] == {"length": 9}
    for text in ("nonsense", "{}", '{"tensors": {"heads": "x"}}'):
        (tmp_path / FOLDER / "razor_attention.json").write_text(text)
        with pytest.raises(ModelError, match="is not a calibration file"):
            Calibrations(tmp_path).load("razor_attention")
