from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from .conftest import MODEL, Finished, in_process, pagoda

PROMPT = "Once upon a time"
GREEDY = ("--temperature", "0", "--max-tokens", "12")


def run(capfd: Any, *args: str) -> Finished:
    return in_process(capfd, "run", MODEL, *args)


def test_text_goes_to_stdout_and_details_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, *PROMPT.split(), *GREEDY, "--verbose")
    assert done.code == 0
    assert len(done.out.split()) > 3
    assert "tokens/s" not in done.out
    for word in ("tokens/s", "prefill", "decode", "first token", "weights", "unaccounted", "runtime", "budget"):
        assert word in done.err
    assert run(capfd, PROMPT, *GREEDY, "--no-stream").out == done.out
    assert run(capfd, PROMPT, *GREEDY, "--echo").out == PROMPT + done.out
    assert run(capfd, PROMPT, *GREEDY, "--echo", "--no-stream").out == PROMPT + done.out


def test_json_is_one_document_with_the_whole_truth(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "--prompt", PROMPT, *GREEDY, "--json", "--memory", "3GiB")
    assert done.code == 0
    assert done.err == ""
    data = done.json
    assert data["model"] == MODEL
    assert data["finish_reason"] == "length"
    assert data["usage"]["completion_tokens"] == len(data["token_ids"]) == 12
    assert data["speed"]["tokens_per_second"] > 0
    assert data["kv_bytes"]["peak"] > 0
    assert data["memory"]["total_bytes"] == 3 << 30
    assert data["text"] == run(capfd, PROMPT, *GREEDY).out.removesuffix("\n")
    again = run(capfd, "--token-ids", ",".join(map(str, data["prompt_token_ids"])), *GREEDY, "--json").json
    assert again["token_ids"] == data["token_ids"]


def test_json_streams_one_line_per_piece(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in run(capfd, PROMPT, *GREEDY, "--json", "--stream").out.splitlines()]
    assert "".join(line["delta"] for line in lines[:-1]) == lines[-1]["text"]


def test_several_prompts_and_answers(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "-p", "The cat", "-p", "The dog", "-n", "2", "--seed", "1", "--max-tokens", "4")
    assert done.out.count("--- prompt") == 4
    data = run(capfd, "-p", "The cat", "-p", "The dog", "-n", "2", "--seed", "1", "--max-tokens", "4", "--json").json
    assert [len(output["answers"]) for output in data["outputs"]] == [2, 2]


def test_sampling_options_reach_the_sampler(capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--seed")
    texts = [run(capfd, PROMPT, "--max-tokens", "12", *options, seed).out for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    stopped = run(capfd, PROMPT, *GREEDY, "--ignore-eos", "--stop", "e", "--json").json
    assert stopped["finish_reason"] == "stop"
    assert "e" not in stopped["text"]


def test_the_prompt_may_come_from_stdin(capfd: pytest.CaptureFixture[str]) -> None:
    done = in_process(capfd, "run", MODEL, "-", *GREEDY, stdin=PROMPT)
    assert done.code == 0
    assert len(done.out.split()) > 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["/no/such/folder", "hi"], "no such folder"),
        ([MODEL, "hi", "--dtype", "fp61"], "unknown dtype 'fp61'; accepted: auto, bfloat16, float16, float32"),
        ([MODEL, "hi", "--kv", "snappy"], "snappy"),
        ([MODEL, "hi", "--kv", "recent(budgt=3)"], "budgt"),
        ([MODEL, "hi", "--device", "abacus"], "abacus"),
        ([MODEL, "hi", "--memory", "64MiB"], "the nearest budget that can is"),
        ([MODEL, "hi", "--memory", "plenty"], "accepted: a whole number of bytes"),
        ([MODEL, "hi", "--memory", "1.5"], "share between 0 and 1"),
        ([MODEL, "hi", "--max-model-len", "long"], "accepted: auto, or a whole number of tokens"),
        ([MODEL, "hi", "--max-model-len", "-3"], "max_model_len"),
        ([MODEL, "hi", "--max-model-len", "99999999"], "99999999"),
        ([MODEL, "hi", "--max-tokens", "0"], "max_tokens"),
        ([MODEL, "hi", "--temperature", "-1"], "temperature"),
        ([MODEL, "hi", "--top-p", "2"], "top_p"),
        ([MODEL, "hi", "-n", "2", "--stream"], "--stream shows one answer"),
        ([MODEL, "hi", "--echo", "--json"], "--echo is for people"),
        ([MODEL], "no prompt"),
        ([MODEL, ""], "empty"),
        ([MODEL, "-p", "hi", "-p", ""], "empty"),
        ([MODEL, "--token-ids", "1,99999999"], "99999999"),
        ([MODEL, "--token-ids", "1,-5"], "-5"),
        ([MODEL, "--token-ids", "1,two"], "not a list of token ids"),
        ([MODEL, " ".join(["word"] * 200), "--max-model-len", "64"], "context is 64"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    done = in_process(capfd, "run", *args)
    assert done.code == 2, done.out
    assert done.out == ""
    assert done.err.startswith("pagoda: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_bytes_that_are_no_text_are_refused_with_the_place() -> None:
    done = pagoda("run", MODEL, "-", stdin=b"ab\xff")
    assert (done.code, done.err) == (2, "pagoda: error: the prompt on stdin is not UTF-8 text (byte 2)\n")


def test_an_unknown_hub_model_without_a_network_is_one_line() -> None:
    done = pagoda("run", "nobody/nothing-7b", "hi")
    assert done.code == 2
    assert done.err.startswith("pagoda: error: nobody/nothing-7b")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_running_answer_without_a_traceback(times: int) -> None:
    args = [sys.executable, "-u", "-m", "pagoda", "run", MODEL, PROMPT, "--max-tokens", "100000", "--ignore-eos"]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    assert process.stdout.read(4)  # the answer has begun
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err


def test_a_closed_pipe_ends_it_quietly() -> None:
    command = f"'{sys.executable}' -m pagoda run '{MODEL}' '{PROMPT}' --max-tokens 300 --ignore-eos | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=180, check=True)
    assert (len(done.stdout), done.stderr) == (5, b"")
