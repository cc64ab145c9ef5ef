"""Everything that the HTTP APIs take, at once, against one server; each answer compared with the same request alone.

    python -m benchmarks.api_soak --requests 400 --seconds 60
    python -m benchmarks.api_soak --serve --kv-offload 16MiB --shadow 0.2

Requests are drawn over all endpoints (completions, chats, Anthropic's messages, responses, embeddings, tokens) with
tools, forms, log-probabilities, n, stop texts, a KV method each, streamed or whole; some leave, some have a
field that is wrong, some bodies are broken. The pool holds little more than one context. Then a second server with all
the room there is, no prefix cache and nobody else gets every request that was answered once more, always whole.

Prints a JSON document; exit code 1 unless: no 5xx, no hang, broken bodies are refused, answers are equal, errors say
why, nothing is held afterwards, the auditor balances, metrics count what the clients saw, and no error was logged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from pagoda.server.buffers import CONNECTION_BYTES

from .api_answers import alike, told
from .api_work import Ask, draw

NUMBERS = ("--kv-cache-dtype", "--quantization", "--dtype", "--kv-offload", "--tool-call-parser")
"""Options that answers, or whether there is one, depend on; the second server has them as well."""
ENDPOINTS = {
    "/v1/completions": "completions", "/v1/chat/completions": "chat", "/v1/messages": "messages",
    "/v1/responses": "responses", "/v1/embeddings": "embeddings",
}  # fmt: skip


class Server:
    """``pagoda serve`` with its log kept."""

    def __init__(self, model: str, *options: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "pagoda", "serve", model, "--port", "0", "--json", "--log-level", "warning"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {self.log()[-1000:]}")
        self.url = json.loads(line)["url"]

    def rss(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


async def send(client: httpx.AsyncClient, ask: Ask, leave_after: float | None = None) -> tuple[int, bytes]:
    """Status and body; status 0 where we left, -1 where nothing came in time."""
    headers = {"content-type": "application/json"}
    try:
        async with asyncio.timeout(120):
            request = client.build_request("POST", ask.path, content=ask.data(), headers=headers)
            async with asyncio.timeout(leave_after):
                answer = await client.send(request, stream=True)
                try:
                    return answer.status_code, await answer.aread()
                finally:
                    await answer.aclose()
    except TimeoutError:
        return (0, b"") if leave_after is not None else (-1, b"")
    except httpx.HTTPError as error:
        return -2, repr(error).encode()


async def crowd(server: Server, asks: list[Ask], rss: list[int]) -> list[tuple[int, bytes]]:
    async def one(client: httpx.AsyncClient, ask: Ask, leave_after: float | None) -> tuple[int, bytes]:
        await asyncio.sleep(ask.delay)
        found = await send(client, ask, leave_after)
        rss.append(server.rss())
        return found

    rng = random.Random(0)
    async with httpx.AsyncClient(base_url=server.url, timeout=130, limits=httpx.Limits(max_connections=400)) as client:
        leaving = [rng.random() * 0.5 if ask.kind == "left" else None for ask in asks]
        return await asyncio.gather(*(one(client, ask, left) for ask, left in zip(asks, leaving, strict=True)))


def faults_of(asks: list[Ask], found: list[tuple[int, bytes]]) -> dict[int, str]:
    """What is wrong with an answer by itself."""
    wrong = {}
    for index, (ask, (status, body)) in enumerate(zip(asks, found, strict=True)):
        if status >= 500 or status < 0:
            wrong[index] = f"status {status}: {body[:300]!r}"
        elif ask.kind == "broken" and status == 200:
            wrong[index] = "answered"
        elif status >= 400 and not json.loads(body)["error"]["message"]:
            wrong[index] = f"does not say why: {body[:300]!r}"
    return wrong


def differences(asks: list[Ask], found: list[tuple[int, bytes]], alone: Server) -> dict[int, str]:
    """What a client saw otherwise than alone, and good requests that only the crowd's server refuses."""
    wrong = {}
    with httpx.Client(base_url=alone.url, timeout=130) as client:
        for index, (ask, (status, body)) in enumerate(zip(asks, found, strict=True)):
            if ask.kind not in ("good", "odd") or status <= 0 or (ask.kind == "odd" and status != 200):
                continue
            whole = ask
            if isinstance(ask.body, dict) and ask.streams:
                body_alone = {key: value for key, value in ask.body.items() if key not in ("stream", "stream_options")}
                whole = replace(ask, body=body_alone)
            answer = client.post(ask.path, content=whole.data(), headers={"content-type": "application/json"})
            if status == 429 or b"context_length_exceeded" in body:  # its queue and its pool are small
                continue
            if status != answer.status_code:
                wrong[index] = f"status {status}, alone {answer.status_code}: {body[:300]!r} {answer.content[:300]!r}"
            elif status == 200 and ask.kind == "good":  # one with a wrong field may have lost its seed
                try:
                    wrong[index] = alike(told(ask, body), told(whole, answer.content))
                except (ValueError, KeyError, IndexError) as error:
                    wrong[index] = f"{type(error).__name__}: {error}"
    return {index: why for index, why in wrong.items() if why}


def left_over(server: Server) -> dict[str, Any]:
    """What is held though nobody asks any more, after at most a minute."""
    ends = time.monotonic() + 60
    while True:
        stats = httpx.get(f"{server.url}/admin/stats", timeout=60).json()
        held = {name: stats["server"][name] for name in ("open_jobs", "open_streams", "inside")}
        held |= {"buffers": stats["server"]["held_bytes"] - CONNECTION_BYTES}  # this look's own
        held |= {name: stats["queue"][name] for name in ("running", "waiting")}
        held |= {"sequences": stats["kv"]["num_sequences"], "policies": stats["kv"]["policy_bytes"]}
        held |= {"pages": stats["kv"]["used_bytes"] - stats["kv"]["idle_prefix_bytes"]}
        found = {name: value for name, value in held.items() if value}
        if (not found and not stats["shadow"]["pending"]) or time.monotonic() > ends:
            return found
        time.sleep(0.1)


def miscounted(server: Server, asks: list[Ask], found: list[tuple[int, bytes]]) -> dict[str, str]:
    """Metrics that do not say what the clients saw."""
    from prometheus_client.parser import text_string_to_metric_families

    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "pagoda_http_requests_total" and sample.labels["status"] == "200":
                counted[sample.labels["endpoint"]] += int(sample.value)
            if sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting") and sample.value:
                counted[sample.name] += int(sample.value)
    seen, left = Counter[str](), Counter[str]()
    for ask, (status, _) in zip(asks, found, strict=True):
        seen[ENDPOINTS.get(ask.path, "")] += status == 200
        left[ENDPOINTS.get(ask.path, "")] += status == 0
    wrong = {name: f"{num}" for name, num in counted.items() if name.startswith("vllm:")}
    return wrong | {
        name: f"{counted[name]} counted, {seen[name]} seen, {left[name]} left"
        for name in ENDPOINTS.values() if not seen[name] <= counted[name] <= seen[name] + left[name]
    }  # fmt: skip


def play(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    asks = [draw(rng, args.seconds, offloads="--kv-offload" in args.serve) for _ in range(args.requests)]
    server, rss = Server(args.model, "--memory", args.memory, "--kv-memory", args.kv_memory, *args.serve), []
    try:
        found = asyncio.run(crowd(server, asks, rss))
        wrong, held, metrics = faults_of(asks, found), left_over(server), miscounted(server, asks, found)
        audited = httpx.post(f"{server.url}/admin/audit", timeout=60).json()
        stats = httpx.get(f"{server.url}/admin/stats", timeout=60).json()
        code = server.stop()
    finally:
        server.process.kill()
    same = [part for at, one in enumerate(args.serve) if one in NUMBERS for part in args.serve[at : at + 2]]
    context = ["--max-model-len", str(stats["model"]["max_model_len"])]
    alone = Server(args.model, "--no-prefix-caching", *context, *same)
    try:
        wrong = differences(asks, found, alone) | wrong
    finally:
        alone.stop()
    later = rss[len(rss) // 2 :]
    result = {
        "seed": seed, "requests": len(asks),
        "statuses": dict(Counter(f"{ask.kind} {status}" for ask, (status, _) in zip(asks, found, strict=True))),
        "wrong": {
            index: {"what": why, "path": asks[index].path, "body": asks[index].data().decode("utf-8", "replace")[:1500]}
            for index, why in wrong.items()
        },
        "held": held, "metrics": metrics, "audit": audited, "exit_code": code, "log": server.log()[-3000:],
        "preemptions": stats["queue"]["preemptions"], "peak_mib": round(stats["memory"]["peak_rss_bytes"] / 2**20, 1),
        "rss_mib": [round(size / 2**20, 1) for size in (rss[0], later[0], max(later), rss[-1])],
    }  # fmt: skip
    logged = any(word in result["log"] for word in ("Traceback", "ERROR", "CRITICAL"))
    return result | {"good": not (wrong or held or metrics or logged or code) and audited == {"balanced": True}}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api_soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60.0, help="arrivals are spread over so long")
    parser.add_argument("--memory", default="700MiB")
    parser.add_argument("--kv-memory", default="9MiB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest are options of pagoda serve")
    args = parser.parse_args()
    good = True
    for seed in range(args.seed, args.seed + args.rounds):
        result = play(args, seed)
        print(json.dumps(result, indent=1, ensure_ascii=True), flush=True)
        good = good and result["good"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
