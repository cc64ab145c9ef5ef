"""Generate text from a prompt and print it as it comes.

pagoda run lantern "Once upon a time"
pagoda run lantern --prompt "Once upon a time" --max-tokens 120 --verbose
cat letter.txt | pagoda run lantern - --memory 2GiB --json
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, RequestError
from . import _options as opt
from ._output import emit_json, print_ledger, print_table
from ._session import Interrupted, Session, open_llm

if TYPE_CHECKING:
    from ..engine.outputs import RequestOutput

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Prompt = str | list[int]


@app.command()
def run(
    model: opt.Model,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="The prompt; - reads it from stdin.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt (may be repeated).")] = None,
    token_ids: Annotated[list[str] | None, typer.Option(help="A prompt as token ids: 1,403,17.")] = None,
    max_tokens: opt.MaxTokens = None,
    min_tokens: opt.MinTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's own end.")] = False,
    n: Annotated[int, typer.Option("-n", help="Answers per prompt.")] = 1,
    memory: opt.Memory = None,
    kv: opt.KV = "exact",
    kv_cache_dtype: opt.KVCacheDtype = "auto",
    dtype: opt.Dtype = "auto",
    quantization: opt.Quantization = "auto",
    weights: opt.Weights = "auto",
    spool_dir: opt.SpoolDir = None,
    device: opt.Device = "auto",
    max_model_len: opt.MaxModelLen = "auto",
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before its answer.")] = False,
    stream: Annotated[bool | None, typer.Option(help="Print the answer while it grows.", show_default="stream")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Speed, start-up and memory ledger on stderr.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Generate text from a prompt and print it as it comes."""
    from ..sampling.params import SamplingParams

    prompts = read_prompts(words or [], prompt or [], token_ids or [])
    choices = opt.given(
        max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    params = SamplingParams(n=n, ignore_eos=ignore_eos, **choices)
    streaming = (not json) if stream is None else stream
    if echo and json:
        raise ConfigError("--echo is for people; with --json the prompt is in the document")
    if stream and (len(prompts) > 1 or n > 1):
        raise ConfigError("--stream shows one answer of one prompt; leave it out for several")
    options = opt.given(
        memory=memory,
        kv=kv,
        kv_cache_dtype=kv_cache_dtype,
        dtype=dtype,
        quantization=quantization,
        weights=weights,
        spool_dir=spool_dir,
        device=device,
        max_model_len=opt.length(max_model_len),
    )
    with open_llm(model, options) as session:
        if streaming and len(prompts) == 1 and n == 1:
            if echo and not json:
                print(_as_text(session, prompts[0]), end="", flush=True)
            outputs = [_stream(session, prompts[0], params, json)]
        else:
            outputs = _generate(session, prompts, params, show=not json, echo=echo)
        _finish(session, model, outputs, verbose=verbose, json=json)


def read_prompts(words: list[str], prompts: list[str], token_ids: list[str]) -> list[Prompt]:
    """Every prompt of the command line, in the order words, ``--prompt``, ``--token-ids``."""
    texts = ([" ".join(words)] if words else []) + prompts
    found: list[Prompt] = [_read_stdin() if text == "-" else text for text in texts]
    found += [_read_ids(text) for text in token_ids]
    if not found:
        raise RequestError("no prompt; give one after the model, with --prompt, or - to read it from stdin")
    return found


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the prompt on stdin is not UTF-8 text (byte {error.start})") from error


def _read_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--token-ids {text!r} is not a list of token ids; write them like 1,403,17") from None


def _stream(session: Session, prompt: Prompt, params: Any, json: bool) -> RequestOutput:
    """Prints the pieces of one answer; Ctrl-C ends it after the current step."""
    output: RequestOutput | None = None
    with Interrupted() as interrupted:
        for output in session.llm.stream(prompt, params):
            if interrupted.seen:
                raise KeyboardInterrupt
            _note_first_token(session, output)
            if json:
                emit_json({"delta": output.delta})
            else:
                print(output.delta, end="", flush=True)
    if not json:
        print()
    assert output is not None, "a stream ends with its last output"
    return output


def _note_first_token(session: Session, output: RequestOutput) -> None:
    if "first token" not in session.startup and output.timing.first_token is not None:
        session.startup["first token"] = output.timing.first_token - output.timing.arrival


def _as_text(session: Session, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(session.llm.tokenizer.decode(prompt))


def _generate(session: Session, prompts: list[Prompt], params: Any, *, show: bool, echo: bool) -> list[RequestOutput]:
    outputs = session.llm.generate(prompts, params)
    _note_first_token(session, outputs[0])
    if show:
        several = len(prompts) > 1 or params.n > 1
        for number, output in enumerate(outputs):
            for answer in output.outputs:
                if several:
                    print(f"--- prompt {number}, answer {answer.index}")
                print(f"{_as_text(session, prompts[number]) if echo else ''}{answer.text}")
    return outputs


def _finish(session: Session, model: str, outputs: list[RequestOutput], *, verbose: bool, json: bool) -> None:
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise RequestError(failed[0])
    stats = session.llm.stats()
    speed = measure(outputs)
    if json:
        rows = [describe(output) for output in outputs]
        whole = {"model": model, "speed": speed, "startup_seconds": session.startup, "memory": stats["memory"]}
        emit_json({**rows[0], **whole} if len(rows) == 1 else {"outputs": rows, **whole})
    if verbose:
        show_details(session, speed, stats)


def measure(outputs: list[RequestOutput]) -> dict[str, float | int | None]:
    """Speed of the whole call: prefill until the first tokens, decode from there to the end."""
    timings = [output.timing for output in outputs]
    start = min(timing.arrival for timing in timings)
    firsts = [timing.first_token for timing in timings if timing.first_token is not None]
    ends = [timing.finished for timing in timings if timing.finished is not None]
    end = max(ends, default=time.perf_counter())
    first = min(firsts, default=end)
    prompt = sum(output.usage.prompt_tokens - output.usage.cached_tokens for output in outputs)
    generated = sum(output.usage.completion_tokens for output in outputs)
    later = generated - len(firsts)
    return {
        "prompt_tokens": sum(output.usage.prompt_tokens for output in outputs),
        "completion_tokens": generated,
        "seconds": end - start,
        "tokens_per_second": generated / (end - start) if end > start else None,
        "prefill_seconds": first - start,
        "prefill_tokens_per_second": prompt / (first - start) if first > start else None,
        "decode_tokens_per_second": later / (end - first) if later > 0 and end > first else None,
    }


def describe(output: RequestOutput) -> dict[str, Any]:
    """A request's output as plain data; its first answer on top, all of them under ``answers`` when there are more."""
    answers = [
        {"text": a.text, "token_ids": a.token_ids, "finish_reason": a.finish_reason, "stop_reason": a.stop_reason}
        for a in output.outputs
    ]
    usage, kv = output.usage, output.memory
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        **answers[0],
        **({"answers": answers} if len(answers) > 1 else {}),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "kv_bytes": {"peak": kv.peak, "held": kv.held},
    }


def show_details(session: Session, speed: dict[str, float | int | None], stats: dict[str, Any]) -> None:
    """Speed, start-up and the ledger, for people, on stderr."""
    err = sys.stderr
    sys.stdout.flush()
    print(file=err)
    rows = [
        ["prefill", str(speed["prompt_tokens"]), _rate(speed["prefill_tokens_per_second"])],
        ["decode", str(speed["completion_tokens"]), _rate(speed["decode_tokens_per_second"])],
        ["whole answer", str(speed["completion_tokens"]), _rate(speed["tokens_per_second"])],
    ]
    print_table("Speed", ["phase", ">tokens", ">tokens/s"], rows, err)
    waits = [[what, f"{seconds:.2f}"] for what, seconds in session.startup.items()]
    waits.append(["together", f"{sum(session.startup.values()):.2f}"])
    print_table("Start to first token", ["waited for", ">seconds"], waits, err)
    print_ledger(stats["memory"], err)


def _rate(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.1f}"
