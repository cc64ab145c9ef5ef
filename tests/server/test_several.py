"""Several models, one budget: loaded when asked for, the one idle for longest makes room, no answer suffers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.core.errors import BudgetError, ConfigError, ModelError
from pagoda.engine.async_llm import AsyncLLM
from pagoda.engine.config import EngineConfig
from pagoda.engine.needs import needed_bytes
from pagoda.server.config import ServerConfig
from pagoda.server.several import SeveralModels, plan_several

from ..engine.tiny import make_model
from .conftest import Running, running

NAMES = ("one", "two", "three")
OPTIONS: dict[str, Any] = {
    "memory": "3GiB", "num_threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 256,
    "reserve_bytes": 16 << 20,
}  # fmt: skip
ASK = {"prompt": [5, 6, 7, 8], "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("several")
    made = [make_model(base / name, seed=seed) for seed, name in enumerate(NAMES)]
    for folder in made:
        file = folder / "tokenizer_config.json"
        template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
        file.write_text(json.dumps(json.loads(file.read_text()) | template))
    return [str(folder) for folder in made]


@pytest.fixture(scope="module")
def texts(folders: list[str]) -> dict[str, str]:
    """What each model answers when it is alone."""
    found = {}
    for name, folder in zip(NAMES, folders, strict=True):
        with LLM(folder, memory="3GiB", num_threads=1) as llm:
            params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
            found[name] = llm.generate([ASK["prompt"]], params)[0].text
    assert len(set(found.values())) == 3
    return found


Serve = Callable[..., Running]


@pytest.fixture
def several(folders: list[str]) -> Iterator[Serve]:
    """``several(room=2.5, pinned=("one",))``: a server whose budget has room for so many of the models at a time."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def serve(room: float = 9.0, pinned: tuple[str, ...] = (), options: dict[str, Any] | None = None,
                  **config: Any) -> Running:  # fmt: skip
            asked = OPTIONS | (options or {})
            plan = plan_several(folders, NAMES, pinned, asked)
            first = AsyncLLM(folders[0], ground=plan.ground, **asked)
            ledger, each = plan.ground.ledger, first.required_bytes
            assert plan.ground.runtime is not None
            ledger.set_total(int(plan.ground.runtime.num_bytes + (16 << 20) + room * each))

            def make(server_config: ServerConfig) -> SeveralModels:
                return SeveralModels(plan.entries, plan.ground, first, asked, server_config)

            made = stack.enter_context(running(None, ServerConfig(port=0, memory_bytes=16 << 20, **config), make=make))
            stack.callback(lambda: asyncio.run(made.roster.close()))
            made.call(made.roster.prepare())
            return made

        yield serve


def text_of(server: Running, name: str, **body: Any) -> str:
    answer = server.post("/v1/completions", ASK | {"model": name} | body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name
    return str(answer.json()["choices"][0]["text"])


def places(server: Running) -> dict[str, str]:
    return {one["id"]: one["state"] for one in server.http.get("/v1/models").json()["data"]}


def test_loaded_on_demand_and_each_answers_as_it_does_alone(several: Serve, texts: dict[str, str]) -> None:
    server = several()
    assert places(server) == {"one": "loaded", "two": "unloaded", "three": "unloaded"}
    for name in (*NAMES, *NAMES):
        assert text_of(server, name) == texts[name]
    assert set(places(server).values()) == {"loaded"}
    metrics = server.http.get("/metrics").text
    for name in NAMES:
        assert f'pagoda_model_loaded{{model_name="{name}"}} 1.0' in metrics
        assert f'vllm:generation_tokens_total{{model_name="{name}"}} 16.0' in metrics
        assert f'pagoda_kv_bytes{{model_name="{name}",state="used",tier="device"}}' in metrics
    assert metrics.count("# TYPE vllm:generation_tokens_total counter") == 1
    assert metrics.count("pagoda_memory_budget_bytes ") == 3  # help, type, and the one budget
    assert server.post("/admin/audit").json() == {"balanced": True}
    assert server.post("/v1/completions", ASK | {"model": "four"}).status_code == 404
    assert server.post("/v1/completions", ASK).json()["model"] == "one"  # no name: the first


def test_the_one_idle_for_longest_makes_room(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=2.5)
    ledger = server.service.llm._built.ledger
    for name in ("one", "two", "one", "three"):
        assert text_of(server, name) == texts[name]
        assert ledger.leased_bytes <= ledger.total_bytes
    assert places(server) == {"one": "loaded", "two": "unloaded", "three": "loaded"}
    assert text_of(server, "two") == texts["two"]
    assert places(server) == {"one": "unloaded", "two": "loaded", "three": "loaded"}
    counted = server.post("/tokenize", {"prompt": "abc", "model": "one"}).json()
    assert counted["count"] == 3
    assert places(server)["one"] == "unloaded"  # a tokenizer wakes nobody
    listed = {one["id"]: one for one in server.http.get("/admin/stats").json()["models"]}
    assert listed["one"]["required_bytes"] is None
    assert listed["two"]["required_bytes"] > 0
    assert [listed[name]["num_loads"] for name in NAMES] == [1, 2, 1]


def test_a_pinned_one_stays(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=2.5, pinned=("two",))
    assert places(server)["two"] == "loaded"  # before anybody asked
    for name in ("one", "three", "one", "three"):
        assert text_of(server, name) == texts[name]
        assert places(server)["two"] == "loaded"
    done = server.post("/admin/models", {"model": "two", "pinned": False, "loaded": False}).json()
    assert (done["state"], done["pinned"]) == ("unloaded", False)
    assert server.post("/admin/models", {"model": "two", "pinned": True}).json()["state"] == "loaded"
    assert server.post("/admin/models", {"model": "two"}).status_code == 400


def test_what_runs_is_not_disturbed_and_who_waits_gets_its_turn(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=1.5)
    stop, answers = threading.Event(), list[str]()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(text_of(server, "one"))

    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(keep_asking) for _ in range(2)]
        long = pool.submit(text_of, server, "one", max_tokens=200)
        time.sleep(0.2)
        assert text_of(server, "two") == texts["two"]  # though "one" is never idle by itself
        stop.set()
        assert long.result(30).startswith(texts["one"])
        for stream in streams:
            stream.result(30)
    assert set(answers) == {texts["one"]}


def test_many_who_ask_load_it_once(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=1.5)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: text_of(server, "two"), range(8))) == [texts["two"]] * 8
    assert server.roster.find("two").num_loads == 1


def test_what_can_never_fit_is_refused_with_the_numbers(several: Serve, folders: list[str]) -> None:
    server = several(room=1.5, pinned=("one",))
    refused = server.post("/v1/completions", ASK | {"model": "two"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_does_not_fit")
    assert "needs" in refused.json()["error"]["message"]
    assert text_of(server, "one")
    ground = server.roster._ground
    ground.ledger.set_total(ground.ledger.leased_bytes + (1 << 20))
    with pytest.raises(BudgetError, match=r"with the others unloaded .* nearest that can is \d+MiB"):
        needed_bytes(EngineConfig(folders[1], **OPTIONS | {"weights": "resident"}), ground)


def test_a_packed_model_beside_another(folders: list[str], tmp_path: Path) -> None:
    """What it needs is known once it is loaded: until then it needs all that others can give."""
    packed = tmp_path / "packed"
    shutil.copytree(folders[1], packed)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    plan = plan_several([folders[0], str(packed)], NAMES[:2], (), OPTIONS)
    assert needed_bytes(EngineConfig(str(packed), **OPTIONS), plan.ground) == plan.ground.room(str(packed), 0)
    assert plan.ground.runtime is not None
    plan.ground.runtime.release()


def test_what_was_tried_in_vain_is_not_tried_again(several: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it, every request for it would send the others away."""
    tried = []

    def build(*args: Any, **options: Any) -> AsyncLLM:
        tried.append(args)
        return AsyncLLM(*args, **options)

    server = several(room=1.5, pinned=("one",))
    monkeypatch.setattr("pagoda.server.several.needed_bytes", lambda *_: 0)  # it is only seen when it is built
    monkeypatch.setattr("pagoda.server.several.AsyncLLM", build)
    for _ in range(2):
        refused = server.post("/v1/completions", ASK | {"model": "two"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_does_not_fit")
    assert len(tried) == 1
    server.post("/admin/models", {"model": "one", "pinned": False})  # which changes what there is to try
    assert server.post("/v1/completions", ASK | {"model": "two"}).status_code == 200


def test_one_that_cannot_be_read_harms_only_its_own_requests(
    several: Serve, folders: list[str], texts: dict[str, str], tmp_path: Path
) -> None:
    server = several(room=1.5)
    weights, kept = Path(folders[1]) / "model.safetensors", tmp_path / "kept"
    shutil.move(weights, kept)
    try:
        failed = server.post("/v1/completions", ASK | {"model": "two"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "cannot_load")
        assert text_of(server, "one") == texts["one"]
    finally:
        shutil.move(kept, weights)
    assert text_of(server, "two") == texts["two"]


def test_budget_and_sleep_are_of_all(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=3.5)
    for name in NAMES:
        text_of(server, name)
    memory = server.http.get("/admin/stats").json()["memory"]
    smaller = memory["total_bytes"] - int(1.2 * server.service.llm.required_bytes)
    assert server.post("/admin/budget", {"memory": smaller}).json()["total_bytes"] == smaller
    assert places(server) == {"one": "unloaded", "two": "loaded", "three": "loaded"}
    assert server.post("/admin/budget", {"memory": "1MiB"}).status_code == 409
    assert server.post("/admin/budget", {"disk": "1GiB"}).status_code == 400
    assert text_of(server, "one") == texts["one"]
    assert server.post("/admin/sleep").json()["asleep"]
    assert set(places(server).values()) == {"unloaded"}
    server.post("/admin/wake")
    assert places(server) == {"one": "loaded", "two": "unloaded", "three": "unloaded"}


def test_a_budget_in_which_a_model_could_not_run_is_refused(several: Serve, texts: dict[str, str]) -> None:
    server = several(room=3.5)
    for name in NAMES:
        text_of(server, name)
    ledger = server.service.llm._built.ledger
    before, fixed = ledger.total_bytes, ledger.leased_by("runtime") + ledger.leased_by("tokenizer")
    refused = server.post("/admin/budget", {"memory": fixed + server.service.llm.required_bytes // 3})
    assert (refused.status_code, ledger.total_bytes) == (409, before)
    assert set(places(server).values()) == {"loaded"}  # nobody left for it
    nearest = re.search(r"the nearest that can is (\d+MiB)", refused.json()["error"]["message"])
    assert nearest is not None
    assert server.post("/admin/budget", {"host_memory": nearest[1]}).status_code == 200
    for name in NAMES:
        assert text_of(server, name) == texts[name]


def test_idle_ones_leave_after_a_while(several: Serve) -> None:
    server = several(sleep_after=0.3, pinned=("one",))
    text_of(server, "two")
    end = time.monotonic() + 60
    while places(server)["two"] != "unloaded":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert places(server)["one"] == "loaded"


def test_spare_kv_of_an_idle_model_goes_to_a_busy_one(several: Serve) -> None:
    server = several(room=3.5)
    text_of(server, "two", prompt=[9] * 200)
    asleep = server.roster.find("two").service
    assert asleep is not None
    ledger, lease = asleep.llm._built.ledger, asleep.llm._built.engine.stores
    ledger.relieve(ledger.total_bytes)
    assert lease._lease.num_bytes == lease.sure_bytes  # all but what it is sure of
    text_of(server, "two", prompt=[9] * 200)
    assert lease._lease.num_bytes >= lease.sure_bytes


def test_a_conversation_goes_on_with_its_model(several: Serve) -> None:
    server = several(room=1.5)
    ask = {"input": "hello", "max_output_tokens": 4, "temperature": 0}
    first = server.post("/v1/responses", ask | {"model": "two"}).json()
    assert places(server) == {"one": "unloaded", "two": "loaded", "three": "unloaded"}
    assert server.post("/v1/responses", ask | {"model": "three"}).json()["model"] == "three"
    assert server.http.get(f"/v1/responses/{first['id']}").json() == first  # asked for, not computed
    assert places(server)["two"] == "unloaded"
    second = server.post("/v1/responses", ask | {"previous_response_id": first["id"]}).json()
    assert second["model"] == "two"
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    wrong = server.post("/v1/responses", ask | {"previous_response_id": first["id"], "model": "three"})
    assert wrong.status_code == 400
    assert server.http.delete(f"/v1/responses/{first['id']}").json()["deleted"]
    assert server.http.get("/v1/responses/resp_unknown").status_code == 404


def test_command_lines_that_make_no_sense(folders: list[str]) -> None:
    for models, names, pinned, said in (
        (folders[:2], ("a",), (), "2 models and 1 served names"),
        ([folders[0], folders[0]], (), (), "is there twice"),
        (folders[:2], ("a", "a"), (), "name 'a' is there twice"),
        (folders[:2], ("a", "b"), ("c",), "--pin"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan_several(models, names, pinned, OPTIONS)
    with pytest.raises(ConfigError, match="chat-template"):
        plan_several(folders, NAMES, (), OPTIONS | {"chat_template": "x"})
    with pytest.raises(ModelError, match="nowhere"):
        plan_several([folders[0], "/nowhere/nothing"], (), (), OPTIONS)
