"""Clients of every kind against one server for minutes: streams, cancels, nonsense, oversized prompts, slow readers.

    python benchmarks/server_soak.py --clients 200 --seconds 300

Starts ``pagoda serve lantern`` in a process of its own. Exit code 1 unless: no 5xx, no request that hangs, every
request ended in an answer or an error, nothing held afterwards (jobs, streams, pages; the auditor balances), and RSS
flat: in the last 60 % of the time its largest value is within 2 % of its smallest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HANG_SECONDS = 120.0
KINDS = ("stream", "stream", "stream", "stream", "cancel", "malformed", "oversized", "slow", "whole", "chat")


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str, int]:
    code = "from pagoda.cli.main import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "lantern", "--memory", args.memory, "--port", "0", "--json",
         "--max-waiting", "512", "--send-timeout", "10", "--log-level", "warning"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    port = int(json.loads(child.stdout.readline())["url"].rpartition(":")[2])
    return child, "127.0.0.1", port


class Client:
    """One of many; sends one request after the other until the time is over."""

    def __init__(self, number: int, port: int, until: float, seen: Counter[str]) -> None:
        self._rng, self._port, self._until, self.seen = random.Random(number), port, until, seen

    async def run(self) -> None:
        while time.monotonic() < self._until:
            kind = self._rng.choice(KINDS)
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    self.seen[await getattr(self, f"_{kind}")()] += 1
            except TimeoutError:
                self.seen[f"hang ({kind})"] += 1
            except ConnectionError as error:
                self.seen[f"connection lost ({kind}, {type(error).__name__})"] += 1

    def _story(self, **more: Any) -> dict[str, Any]:
        ids = [self._rng.randrange(300, 2000) for _ in range(self._rng.randrange(1, 200))]
        return {"prompt": ids, "max_tokens": self._rng.randrange(1, 60), "ignore_eos": True, **more}

    async def _stream(self) -> str:
        return await self._ask("/v1/completions", self._story(stream=True))

    async def _whole(self) -> str:
        return await self._ask("/v1/completions", self._story(n=self._rng.choice([1, 1, 2])))

    async def _chat(self) -> str:
        messages = [{"role": "user", "content": f"Tell me about number {self._rng.random()}."}]
        return await self._ask("/v1/chat/completions", {"messages": messages, "max_tokens": 20, "stream": True})

    async def _cancel(self) -> str:
        return await self._ask("/v1/completions", self._story(stream=True, max_tokens=500), leave_after=0.3)

    async def _slow(self) -> str:
        return await self._ask("/v1/completions", self._story(stream=True, max_tokens=100), pause=0.05)

    async def _oversized(self) -> str:
        return await self._ask("/v1/completions", {"prompt": "word " * 5000, "stream": True}, expected="400")

    async def _malformed(self) -> str:
        bodies = [b"{", b"[]", b'{"prompt": 1.5}', b'{"prompt": "a", "temperature": NaN}', b"\xff" * 50,
                  b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "unheard": 1}']  # fmt: skip
        return await self._ask("/v1/completions", self._rng.choice(bodies), expected="400")

    async def _ask(
        self, path: str, body: Any, *, expected: str = "200", leave_after: float | None = None, pause: float = 0.0
    ) -> str:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 14)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            status = (await reader.readline()).split()[1].decode()
            if status != expected:
                return f"status {status} instead of {expected}"
            end = await self._read(reader, leave_after, pause, expects_done=b'"stream": true' in data)
            return f"{expected} {end}"
        finally:
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, leave_after: float | None, pause: float, *, expects_done: bool
    ) -> str:
        leave_at = None if leave_after is None else time.monotonic() + leave_after * self._rng.random()
        tail = b""
        while part := await reader.read(1 << 12):
            tail = (tail + part)[-4000:]
            if leave_at is not None and time.monotonic() > leave_at:
                return "left"
            if pause:
                await asyncio.sleep(pause)
        if b'"error"' in tail:
            return "with an error" if b"invalid_request_error" in tail else f"BAD END {tail[-300:]!r}"
        return "ended" if not expects_done or b"[DONE]" in tail else f"BAD END {tail[-300:]!r}"


def get(port: int, path: str, method: str = "GET") -> Any:
    import urllib.request

    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def soak(args: argparse.Namespace, pid: int, port: int) -> tuple[Counter[str], list[int]]:
    seen: Counter[str] = Counter()
    until, rss = time.monotonic() + args.seconds, []
    clients = [asyncio.create_task(Client(number, port, until, seen).run()) for number in range(args.clients)]
    while time.monotonic() < until:
        await asyncio.sleep(1)
        rss.append(rss_bytes(pid))
    await asyncio.gather(*clients)
    return seen, rss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--memory", default="700MiB")
    args = parser.parse_args()
    child, _, port = start_server(args)
    try:
        seen, rss = asyncio.run(soak(args, child.pid, port))
        time.sleep(1)
        stats = get(port, "/admin/stats")
        balanced = get(port, "/admin/audit", "POST")["balanced"]
        child.terminate()
        code = child.wait(60)
    finally:
        child.kill()
    later = rss[int(len(rss) * 0.4) :]
    held = stats["server"]
    result = {
        "clients": args.clients, "seconds": args.seconds, "requests": sum(seen.values()), "outcomes": dict(seen),
        "tokens": stats["steps"]["tokens_sampled"], "preemptions": stats["queue"]["preemptions"],
        "rss_mib": [round(min(later) / 2**20, 1), round(max(later) / 2**20, 1)],
        "rss_growth": round(max(later) / min(later) - 1, 4),
        "peak_rss_mib": round(stats["memory"]["peak_rss_bytes"] / 2**20, 1), "balanced": balanced,
        "left": {"sequences": stats["kv"]["num_sequences"], "jobs": held["open_jobs"], "streams": held["open_streams"]},
        "exit_code": code,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    wrong = [name for name in seen if name.startswith(("status", "hang", "connection")) or "BAD" in name]
    good = not wrong and balanced and not any(result["left"].values()) and code == 0  # type: ignore[attr-defined]
    return 0 if good and result["rss_growth"] <= 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
