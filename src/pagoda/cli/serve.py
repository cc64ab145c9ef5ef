"""Serve a model over HTTP, as OpenAI's and Anthropic's clients expect it.

pagoda serve lantern --memory 1GiB
pagoda serve ./my-model ./my-other-model --memory 6GiB --pin ./my-model
pagoda serve ./my-model --memory 6GiB --port 8001 --api-key-file keys.txt --max-num-seqs 32
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json
from ._session import check, process_age, progress_bar

if TYPE_CHECKING:
    import socket

    from ..engine.async_llm import AsyncLLM
    from ..engine.ground import Ground
    from ..server.several import Several

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Models: each lantern, a folder, or a hub id. Several share the budget, loaded when asked for.",
            metavar="MODEL…",
            show_default=False,
        ),
    ],
    memory: opt.Memory = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests use (may be repeated).", show_default="MODEL")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Of several models, one that is always loaded (may be repeated).")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key that requests must send (may be repeated; seen by ps).")
    ] = None,
    api_key_file: Annotated[
        str | None, typer.Option(help="File of keys, one a line: KEY, NAME:KEY, or admin:KEY.")
    ] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Origin that browsers may ask from.")] = None,
    kv: opt.KV = "exact",
    kv_cache_dtype: opt.KVCacheDtype = "auto",
    shadow: Annotated[
        float, typer.Option(help="Share of lossy requests that are run exactly as well, when idle, and compared.")
    ] = 0.0,
    host_memory: Annotated[str | None, typer.Option(help="Budget of the host alone; --memory bounds it too.")] = None,
    device_memory: Annotated[str | None, typer.Option(help="Budget of a CUDA device alone.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="Most bytes of the budget that KV may take.")] = None,
    dtype: opt.Dtype = "auto",
    quantization: opt.Quantization = "auto",
    weights: opt.Weights = "auto",
    spool_dir: opt.SpoolDir = None,
    device: opt.Device = "auto",
    max_model_len: opt.MaxModelLen = "auto",
    max_num_seqs: Annotated[int, typer.Option(help="Sequences of one step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens of one step.")] = 2048,
    scheduling: Annotated[
        str, typer.Option(help="Which request next: fcfs, priority, sjf, vtc, … (docs/scheduling.md).")
    ] = "fcfs",
    chat_template: opt.ChatTemplate = None,
    kv_host: Annotated[
        str | None, typer.Option(help="Bytes for prefixes that left the pool, kept packed in this machine's memory.")
    ] = None,
    kv_host_codec: Annotated[
        str, typer.Option(help="How they lie there: exact, or smaller with a loss: int8, cachegen (docs/kv-tiers.md).")
    ] = "exact",
    kv_dir: Annotated[str | None, typer.Option(help="Folder that keeps computed prefixes over restarts.")] = None,
    disk: Annotated[str | None, typer.Option(help="Most bytes in --kv-dir.", show_default="8GiB")] = None,
    kv_ttl: Annotated[float | None, typer.Option(help="Seconds after the last use that a prefix stays there.")] = None,
    kv_dir_codec: Annotated[
        str, typer.Option(help="How pages lie there: exact, or smaller with a loss: int8, cachegen (docs/kv-tiers.md).")
    ] = "exact",
    kv_offload: Annotated[
        str | None, typer.Option(help="Bytes for the KV of requests with kv=offload, outside of the pool.")
    ] = None,
    kv_offload_dir: Annotated[str | None, typer.Option(help="Folder for them.", show_default="memory")] = None,
    kv_window: Annotated[
        str | None, typer.Option(help="Bytes where steps read them.", show_default="8 heads of the longest sequence")
    ] = None,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Share the KV of equal beginnings.")
    ] = True,
    share_prefix_cache: Annotated[
        bool, typer.Option("--share-prefix-cache", help="Also between API keys (timing may tell of others' prompts).")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of a step.", show_default="processors")] = None,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more are told to come back.")] = 256,
    max_concurrent_per_key: Annotated[int | None, typer.Option(help="Requests under way, for each key.")] = None,
    tokens_per_minute_per_key: Annotated[int | None, typer.Option(help="Prompt and answer, for each key.")] = None,
    kv_per_key: Annotated[str | None, typer.Option(help="Bytes of KV that a key's requests may come to hold.")] = None,
    max_body: Annotated[str, typer.Option(help="Largest request body.")] = "8MiB",
    server_memory: Annotated[
        str, typer.Option(help="Bytes of the budget for connections, requests and stored responses.")
    ] = "64MiB",
    request_timeout: Annotated[float, typer.Option(help="Seconds from arrival to the last token.")] = 900.0,
    send_timeout: Annotated[float, typer.Option(help="Seconds that a reader may take nothing.")] = 60.0,
    sleep_after: Annotated[
        float | None, typer.Option(help="Seconds without a request after which weights and KV are given back.")
    ] = None,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that open requests have after SIGTERM.")] = 30.0,
    tool_call_parser: Annotated[
        str,
        typer.Option(
            help="How the model writes tool calls: auto (by its chat template), hermes, llama3, mistral, json."
        ),
    ] = "auto",
    reasoning_parser: Annotated[
        str, typer.Option(help="How it writes its thoughts: auto (by its chat template), none, think, gpt_oss.")
    ] = "auto",
    structured_output: Annotated[
        bool, typer.Option("--structured-output/--no-structured-output", help="Keep room for grammars.")
    ] = True,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_file: Annotated[str | None, typer.Option(help="File to log to.", show_default="standard error")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log prompts and answers as well.")] = False,
    otel: Annotated[
        bool, typer.Option("--otel", help="Export traces over OTLP (OTEL_EXPORTER_OTLP_ENDPOINT says where to).")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's and Anthropic's clients expect it."""
    startup = {"python": process_age()}
    from ..server import logs, traces
    from ..server.config import ServerConfig, bytes_or_none
    from ..server.keys import read_keys
    from ..server.listen import bind

    config = ServerConfig(
        host=host, port=port, names=tuple(served_model_name or ()), cors_origins=tuple(cors_origin or ()),
        share_prefix_cache=share_prefix_cache, max_waiting=max_waiting,
        max_concurrent_per_key=max_concurrent_per_key, tokens_per_minute_per_key=tokens_per_minute_per_key,
        kv_bytes_per_key=bytes_or_none(kv_per_key, "kv-per-key"),
        max_body_bytes=bytes_or_none(max_body, "max-body") or 0,
        memory_bytes=bytes_or_none(server_memory, "server-memory") or 0,
        request_timeout=request_timeout, send_timeout=send_timeout, drain_timeout=drain_timeout,
        sleep_after=sleep_after,
        tool_call_parser=tool_call_parser, reasoning_parser=reasoning_parser, log_prompts=log_prompts,
    )  # fmt: skip
    logs.set_up(log_format, log_level, log_file)
    tracing = traces.tracer_provider() if otel else None
    keys = read_keys(api_key or (), api_key_file, os.environ)
    options = opt.given(
        memory=memory, host_memory=host_memory, device_memory=device_memory,
        kv=kv, kv_cache_dtype=kv_cache_dtype, kv_memory=kv_memory, dtype=dtype, shadow=shadow,
        quantization=quantization, weights=weights, spool_dir=spool_dir, device=device,
        num_threads=threads,
        max_model_len=opt.length(max_model_len), max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, scheduling=scheduling,
        chat_template=opt.read_template(chat_template), kv_host=kv_host, kv_dir=kv_dir, disk=disk, kv_ttl=kv_ttl,
        kv_host_codec=kv_host_codec, kv_dir_codec=kv_dir_codec,
        kv_offload=kv_offload, kv_offload_dir=kv_offload_dir, kv_window=kv_window,
        enable_prefix_caching=prefix_caching,
        structured_output=structured_output, reserve_bytes=config.memory_bytes,
    )  # fmt: skip
    if len(set(models)) < len(models):
        raise ConfigError(f"model {max(models, key=models.count)!r} is there twice; name every model once")
    for model in models:
        check(model, options)
    if pin and len(models) == 1:
        raise ConfigError("--pin is for several models; the only one stays loaded (see --sleep-after)")
    several = None
    with bind(config) as sock:
        if len(models) > 1:
            several = _several(models, config.names, pin or (), options)
        llm = _load(models[0], options, startup, None if several is None else several.ground)
        loaded = time.perf_counter()

        def on_ready() -> None:
            startup["listening"] = time.perf_counter() - loaded
            try:
                names = [entry.name for entry in several.entries] if several else config.names or (models[0],)
                _announce(llm, config.host, sock, names, startup, json=json)
            except OSError:
                _give_up_on(sys.stdout)

        from ..server.serving import run

        code = run(llm, config, keys, sock, on_ready=on_ready, tracing=tracing, several=several)
    try:
        sys.stderr.flush()
    except OSError:  # or what could not be logged would become the exit code, 120
        _give_up_on(sys.stderr)
    sys.exit(code)


def _give_up_on(stream: IO[str]) -> None:
    """A full disk or a closed pipe behind it: the server serves all the same; what the stream still holds is lost."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _several(models: list[str], names: Sequence[str], pinned: Sequence[str], options: dict[str, Any]) -> Several:
    from ..server import serving  # noqa: F401  # measured as part of the runtime, as in `_load`
    from ..server.several import plan_several

    return plan_several(models, names, pinned, options)


def _load(model: str, options: dict[str, Any], startup: dict[str, float], ground: Ground | None) -> AsyncLLM:
    started = time.perf_counter()
    from ..engine.async_llm import AsyncLLM
    from ..server import serving  # noqa: F401  # counted here, and held by the ledger as part of the runtime

    startup["import"] = time.perf_counter() - started
    with progress_bar(model) as progress:
        llm = AsyncLLM(model, progress=progress, ground=ground, **options)
    startup.update({name.replace("_", " "): s for name, s in llm.startup.items() if name != "total"})
    return llm


def _announce(
    llm: AsyncLLM, host: str, sock: socket.socket, names: Sequence[str], startup: dict[str, float], *, json: bool
) -> None:
    """Where the server is, and what the time from start to ready was spent on."""
    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{sock.getsockname()[1]}"
    total = sum(startup.values())
    if json:
        emit_json({"url": url, "models": names, "ready_seconds": total, "startup_seconds": startup})
        return
    parts = ", ".join(f"{what} {seconds:.2f}" for what, seconds in startup.items())
    if llm.weights_placement != "resident":
        print(f"weights: {llm.weights_placement}", flush=True)
    print(f"serving {', '.join(names)} at {url}  (ready after {total:.2f} s: {parts})", flush=True)
