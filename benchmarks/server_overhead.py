"""What HTTP costs: the same load through AsyncLLM and through the server, A B A B in one run.

    python benchmarks/server_overhead.py --model lantern --streams 32 --rounds 3
    python benchmarks/server_overhead.py --model qwen05b --rounds 3        # random weights of Qwen2.5-0.5B's shape

Three sides, each in processes of its own, asked in turn: ``engine`` (AsyncLLM alone), ``one`` (the server as it is: the
engine's thread in the HTTP process) and ``two`` (HTTP in a process of its own, the engine's outputs over a pipe). Load:
``--streams`` streaming completions of ``--tokens`` tokens at once, from a client process that reads and counts. The
figures are medians of tokens per second, their spread (max - min) / median, the ratio to ``engine`` round by round, and
what the side's processes hold together at the end (proportional set size: what they share counts once).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMPT = 32


def prompts(num: int, seed: int, vocab: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300, vocab) for _ in range(PROMPT)] for _ in range(num)]


# -- the engine alone ------------------------------------------------------------------------------------------------


def engine_side(pipe: Connection, model: str, options: dict[str, Any]) -> None:
    import uvloop

    uvloop.run(_engine_side(pipe, model, options))


async def _engine_side(pipe: Connection, model: str, options: dict[str, Any]) -> None:
    import gc

    from pagoda import AsyncLLM, SamplingParams

    async with AsyncLLM(model, **options) as llm:
        gc.collect()
        gc.freeze()
        pipe.send("ready")

        async def one(ids: list[int], num: int) -> int:
            told = 0
            async for output in llm.generate(ids, SamplingParams(temperature=0, max_tokens=num, ignore_eos=True)):
                told = len(output.token_ids)
            return told

        while (job := await asyncio.to_thread(pipe.recv)) is not None:
            work, num = job
            started = time.perf_counter()
            counts = await asyncio.gather(*(one(ids, num) for ids in work))
            pipe.send((sum(counts), time.perf_counter() - started))


# -- the server, as it is --------------------------------------------------------------------------------------------


def one_process(pipe: Connection, model: str, options: dict[str, Any]) -> None:
    from pagoda.engine.async_llm import AsyncLLM
    from pagoda.server.config import ServerConfig
    from pagoda.server.keys import Keys
    from pagoda.server.listen import bind
    from pagoda.server.serving import run

    config = ServerConfig(port=0)
    sock = bind(config)
    llm = AsyncLLM(model, **options)
    run(llm, config, Keys(), sock, on_ready=lambda: pipe.send(sock.getsockname()[1]))


# -- HTTP in a process of its own --------------------------------------------------------------------------------------


def two_engine(pipe: Connection, model: str, options: dict[str, Any]) -> None:
    """The engine's process: commands come through the pipe, every step's outputs go back as one message."""
    import gc

    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake

    built = build(EngineConfig(model, **options))
    intake, engine = Intake(built), built.engine
    fmt = built.sizes.fmt
    gc.collect()
    gc.freeze()
    pipe.send((engine.max_model_len, built.sizes.max_blocks, fmt))
    while True:
        while pipe.poll(0 if engine.has_work else None):
            command, *rest = pipe.recv()
            if command == "add":
                for request_id, ids, params, stream, salt in rest[0]:
                    engine.add(intake.request(request_id, ids, params, stream=stream, salt=salt))
            elif command == "abort":
                for request_id in rest[0]:
                    engine.abort(request_id)
            else:
                return
        outputs = engine.step()
        if outputs:
            pipe.send(outputs)


class RemoteLLM:
    """The part of AsyncLLM that the server needs for completions, over a pipe to the engine's process."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        import threading

        from pagoda.core.events import EventBus
        from pagoda.engine.config import EngineConfig
        from pagoda.models.resolve import resolve
        from pagoda.models.tokenizer import Tokenizer

        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=two_engine, args=(theirs, model, options), daemon=True).start()
        self.max_model_len, max_blocks, self.kv_format = self._pipe.recv()
        self.kv_capacity_bytes = max_blocks * self.kv_format.block_bytes
        self.config, self.dead, self.events = EngineConfig(model, **options), None, EventBus()
        self.loaded = SimpleNamespace(chat_templates={}, generation={})
        self.tokenizer = Tokenizer.from_dir(resolve(model))
        self._mail: dict[str, Any] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def when_dead(self, told: Any) -> None:
        pass

    is_asleep = False

    def most_kv_bytes(self, request: Any) -> int:
        return 0  # no key has a limit here

    def lease(self, *_: Any) -> None:
        """The budget is the other process's."""

    def prepare(self, prompt: Any, params: Any, *, request_id: str, salt: str, stream: bool) -> Any:
        from pagoda.engine.request import Request
        from pagoda.kv.grammar import parse_policy

        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return Request(request_id, None, ids, params, parse_policy("exact"), 0, 0.0, salt, 0, stream)

    async def submit(self, requests: Any) -> Any:
        from pagoda.engine.mailbox import Answers, Mailbox

        mailbox = Mailbox(asyncio.get_running_loop())
        for request in requests:
            self._mail[request.request_id] = mailbox
        self._pipe.send(("add", [(r.request_id, r.prompt_ids, r.params, r.stream, r.salt) for r in requests]))
        return Answers(self.drop, [request.request_id for request in requests], mailbox)

    def drop(self, request_ids: Any, mailbox: Any) -> None:
        self._pipe.send(("abort", list(request_ids)))

    async def close(self) -> None:
        self._pipe.send(("close",))

    def _listen(self) -> None:
        from pagoda.engine.mailbox import deliver

        while True:
            try:
                outputs = self._pipe.recv()
            except EOFError:
                return
            deliver([(self._mail.get(o.request_id), o) for o in outputs])
            for output in outputs:
                if output.finished:
                    self._mail.pop(output.request_id, None)


def two_processes(pipe: Connection, model: str, options: dict[str, Any]) -> None:
    from pagoda.server.config import ServerConfig
    from pagoda.server.keys import Keys
    from pagoda.server.listen import bind
    from pagoda.server.serving import run

    config = ServerConfig(port=0)
    sock = bind(config)
    llm: Any = RemoteLLM(model, options)
    run(llm, config, Keys(), sock, on_ready=lambda: pipe.send(sock.getsockname()[1]))


# -- the clients -----------------------------------------------------------------------------------------------------


def clients(pipe: Connection) -> None:
    import uvloop

    uvloop.run(_clients(pipe))


async def _clients(pipe: Connection) -> None:
    while (job := await asyncio.to_thread(pipe.recv)) is not None:
        port, work, num = job
        started = time.perf_counter()
        counts = await asyncio.gather(*(_read_stream(port, ids, num) for ids in work))
        pipe.send((sum(counts), time.perf_counter() - started))


async def _read_stream(port: int, ids: list[int], num: int) -> int:
    """One streaming completion over a plain socket: a client that costs next to nothing."""
    body = json.dumps({
        "prompt": ids, "max_tokens": num, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    tail = b""
    while part := await reader.read(1 << 16):
        tail = (tail + part)[-4096:]
    writer.close()
    marked = tail.rpartition(b'"completion_tokens":')[2]
    return int(marked.partition(b",")[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lantern", help="lantern, qwen05b (made in --models), or a folder")
    parser.add_argument("--models", type=Path, default=Path("build/models"))
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sides", nargs="*", default=["engine", "one", "two"])
    args = parser.parse_args()
    model, vocab = _model(args)
    options = {"memory": args_memory(args), "num_threads": args.threads, "enable_prefix_caching": False}
    print(json.dumps(measure(args, model, vocab, options)))
    return 0


def args_memory(args: argparse.Namespace) -> str:
    return "1GiB" if args.model == "lantern" else "4GiB"


def _model(args: argparse.Namespace) -> tuple[str, int]:
    if args.model != "qwen05b":
        return args.model, 2048
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.peers.checkpoints import model_folder
    from benchmarks.peers.shapes import SHAPES

    return str(model_folder(args.models, SHAPES["qwen05b"])), 15000


def measure(args: argparse.Namespace, model: str, vocab: int, options: dict[str, Any]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    sides = {"engine": engine_side, "one": one_process, "two": two_processes}
    pipes, ports, processes = {}, {}, []
    for name in args.sides:
        ours, theirs = context.Pipe()
        process = context.Process(target=sides[name], args=(theirs, model, options), daemon=name != "two")
        process.start()
        theirs.close()  # so that a side that dies is an error here, and nothing that is waited for
        processes.append(process)
        pipes[name], ports[name] = ours, ours.recv()
    asking, theirs = context.Pipe()
    context.Process(target=clients, args=(theirs,), daemon=True).start()
    theirs.close()
    rates: dict[str, list[float]] = {name: [] for name in args.sides}
    for round_ in range(args.rounds + 1):
        for name in args.sides:
            work = prompts(args.streams, round_, vocab)
            if name == "engine":
                pipes[name].send((work, args.tokens))
                tokens, seconds = pipes[name].recv()
            else:
                asking.send((ports[name], work, args.tokens))
                tokens, seconds = asking.recv()
            assert tokens == args.streams * args.tokens, (name, tokens)
            if round_:
                rates[name].append(tokens / seconds)
    held = {name: pss_of_tree(process.pid) for name, process in zip(args.sides, processes, strict=True)}
    for process in processes:
        process.terminate()
    asking.send(None)
    return summary(args, rates) | {f"{name}_mib": round(num_bytes / 2**20) for name, num_bytes in held.items()}


def pss_of_tree(pid: int | None) -> int:
    """Proportional set size of a process and those it started, in bytes."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(fields[fields.index("Pss:") + 1]) + sum(pss_of_tree(int(child)) for child in children)


def summary(args: argparse.Namespace, rates: dict[str, list[float]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": args.model,
        "streams": args.streams,
        "tokens": args.tokens,
        "threads": args.threads,
    }
    for name, values in rates.items():
        result[f"{name}_tokens_per_s"] = round(statistics.median(values), 1)
        result[f"{name}_spread"] = round((max(values) - min(values)) / statistics.median(values), 2)
        if name != "engine" and "engine" in rates:
            ratios = [ours / base for ours, base in zip(values, rates["engine"], strict=True)]
            result[f"{name}_ratio"] = round(statistics.median(ratios), 3)
            result[f"{name}_ratio_min"] = round(min(ratios), 3)
    return result


if __name__ == "__main__":
    sys.exit(main())
