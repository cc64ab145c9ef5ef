"""lm-evaluation-harness over HTTP against transformers: the same scores, request by request.

    pip install 'lm-eval[api]'            # in this environment, or in another one: --lm-eval /path/to/lm_eval
    python benchmarks/harness_agreement.py --sentences ../shared/data/text/tinystories_valid_word_sample.txt.gz

Starts ``pagoda serve lantern`` and runs three tasks made of the sentences of a text through the harness'
``local-completions``: a choice of four continuations (loglikelihood: echo with logprobs), the bits of whole sentences
(rolling loglikelihood) and greedy continuations (generate_until). Each answer is then computed again by transformers in
float32. Exit code 1 unless every score is within ``--tolerance`` nats and every continuation is the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pagoda

LANTERN = Path(pagoda.__file__).parent / "assets" / "lantern"
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: {target}
{more}
metric_list: [{{metric: {metric}}}]
"""
TASKS = {
    "choice": {"kind": "multiple_choice", "text": "{{context}}", "target": "label", "metric": "acc",
                   "more": 'doc_to_choice: "{{choices}}"'},
    "bits": {"kind": "loglikelihood_rolling", "text": "", "target": '"{{text}}"', "metric": "bits_per_byte",
             "more": ""},
    "story": {"kind": "generate_until", "text": "{{context}}", "target": '"{{text}}"', "metric": "exact_match",
                  "more": 'generation_kwargs: {until: ["."], max_gen_toks: 16, temperature: 0}'},
}  # fmt: skip


def sentences(path: Path) -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8", "replace")[:400_000]
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text)]
    return [part for part in found if 40 < len(part) < 120 and "\n" not in part and "<" not in part]


def write_tasks(folder: Path, texts: list[str], num: int) -> None:
    """Documents of ``num`` sentences, and the tasks' files."""
    rng = random.Random(1)
    rng.shuffle(texts)
    docs = []
    for text in texts[:num]:
        context, good = _halves(text)
        choices = [good, *(_halves(other)[1] for other in rng.sample(texts[num:], 3))]
        rng.shuffle(choices)
        docs.append({"context": context, "choices": choices, "label": choices.index(good), "text": text})
    data = folder / "docs.jsonl"
    data.write_text("\n".join(map(json.dumps, docs)))
    for name, fields in TASKS.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, **fields))


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def run_harness(lm_eval: str, folder: Path) -> None:
    """Serves, and lets the harness ask."""
    server = subprocess.Popen(
        [sys.executable, "-m", "pagoda", "serve", "lantern", "--memory", "1GiB", "--port", "0", "--json",
         "--log-level", "warning"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        args = f"model=lantern,base_url={url}/v1/completions,tokenizer_backend=huggingface,tokenizer={LANTERN}"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
        subprocess.run(
            [lm_eval, "run", "--model", "local-completions", "--model_args", f"{args},num_concurrent=8,max_length=1024",
             "--tasks", ",".join(TASKS), "--include_path", folder, "--log_samples", "--output_path", folder / "out"],
            check=True, env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(60)


class Offline:
    """The same questions to transformers, which knows nothing of us."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch, self._tokenizer = torch, AutoTokenizer.from_pretrained(LANTERN)
        self._model = AutoModelForCausalLM.from_pretrained(LANTERN, dtype=torch.float32).eval()

    def score(self, context: str, continuation: str) -> float:
        if not context:
            return self._sum([self._tokenizer.bos_token_id, *self._ids(continuation)], 1)
        return self._sum(self._ids(context + continuation), len(self._ids(context)))

    def continued(self, context: str) -> str:
        ids = self._ids(context)
        made = self._model.generate(self._torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0)
        return self._tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True).split(".")[0]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _sum(self, ids: list[int], first: int) -> float:
        with self._torch.inference_mode():
            logprobs = self._model(self._torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids)))


def samples(folder: Path, task: str) -> Iterator[tuple[list[Any], list[Any]]]:
    """(arguments, answer) of each question that the harness asked."""
    (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    for line in file.read_text().splitlines():
        sample = json.loads(line)
        for given, answers in zip(sample["arguments"].values(), sample["resps"], strict=True):
            yield list(given.values()), answers


def compare(folder: Path) -> dict[str, Any]:
    offline = Offline()
    choices = [abs(float(a[0][0]) - offline.score(*given[:2])) for given, a in samples(folder, "choice")]
    bits = [abs(float(_first(a)) - offline.score("", given[0])) for given, a in samples(folder, "bits")]
    same = [_first(a).strip() == offline.continued(given[0]).strip() for given, a in samples(folder, "story")]
    return {
        "loglikelihoods": len(choices), "worst_difference_nats": max(choices),
        "rolling": len(bits), "worst_rolling_difference_nats": max(bits), "continuations": len(same),
        "equal_continuations": sum(same),
    }  # fmt: skip


def _first(answers: Any) -> Any:
    return _first(answers[0]) if isinstance(answers, list) else answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True, help="a text, or a gzipped one")
    parser.add_argument("--num", type=int, default=60)
    parser.add_argument("--lm-eval", default=str(Path(sys.executable).parent / "lm_eval"))
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), sentences(args.sentences), args.num)
        run_harness(args.lm_eval, Path(folder))
        found = compare(Path(folder))
    print(json.dumps(found, indent=1))
    worst = max(found["worst_difference_nats"], found["worst_rolling_difference_nats"])
    return 0 if worst <= args.tolerance and found["equal_continuations"] == found["continuations"] else 1


if __name__ == "__main__":
    sys.exit(main())
