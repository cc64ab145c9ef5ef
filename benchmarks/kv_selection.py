"""Decode steps at long context: exact against page selections and codecs, in turns.

    python benchmarks/kv_selection.py --kv "quest(pages=0.1)" --context 8192 --sequences 4
    python benchmarks/kv_selection.py --kv CODECS --context 8192 --sequences 1

The model has a 0.5B model's shape and random weights. The KV of the context is random numbers written straight into the
pages, zeros where a codec stores single slots, since the time of a step does not depend on them; the steps themselves
are the engine's own. What methods are calibrated to is random, too. For each policy: milliseconds of a step (median),
how many times as long the exact steps just before them take (median over the rounds), and the share of held pages that
was read, as the engine counts it. ``--processor-time`` counts what one thread works, for a machine on which others work
too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagoda import LLM, SamplingParams

NAMES = (
    "quest", "lserve", "loki", "sparq", "shadowkv", "tokenselect", "clusterkv", "lychee_decode", "a2ats", "ltri_llm",
    "longcache",
)  # fmt: skip
CODECS = (
    "int8", "fp8", "int4", "int2", "kivi", "kivi(bits=4)", "zipcache", "think", "bfp_outlier_rearrange",
    "coupled_quantization", "csr", "eigen_attention", "kv_heads_compress", "chai",
)  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def write_model(folder: Path, shape: dict[str, Any] = CONFIG) -> None:
    """Random weights with lantern's tokenizer."""
    import pagoda
    from pagoda.models.model import Model

    lantern = Path(pagoda.__file__).parent / "assets" / "lantern"
    vocab = json.loads((lantern / "config.json").read_text())["vocab_size"]
    config = shape | {"vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(lantern / name, folder / name)
    tensors = {
        name: torch.randn(shape).mul_(0.02).to(torch.bfloat16)
        for name, shape in Model.from_config(config).expected_tensors().items()
    }
    save_file(tensors, folder / "model.safetensors")


def calibrate(folder: Path) -> None:
    """What ``pagoda calibrate`` would write, with random content: it costs a step the same."""
    from pagoda.engine.calibrations import Calibrations

    layers, heads, dim = CONFIG["num_hidden_layers"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    ranks = torch.randperm((layers - 1) * heads).view(-1, heads) / ((layers - 1) * heads)
    freq = (10000.0 ** -(torch.arange(dim // 2) / (dim // 2))).expand(layers, -1)
    found = {
        "lychee_decode": {"ranks": torch.cat([torch.full((1, heads), -1.0), ranks])},
        "longcache": {"freq": freq, "fine": torch.zeros_like(freq)},
        "a2ats": {
            "codes": torch.randn(layers, heads, 256, dim),
            "metric": torch.eye(dim).expand(layers, heads, dim, dim).contiguous(),
            "freq": freq[:, None].contiguous(),
        },
        "bfp_outlier_rearrange": {f"{x}_order": torch.randn(layers, heads, dim).argsort(-1).float() for x in "kv"},
        "coupled_quantization": {f"{x}_centres": torch.randn(layers, heads, dim // 4, 256, 4) for x in "kv"},
        "csr": {f"{x}_atoms": torch.randn(layers, heads, 256, dim) / dim**0.5 for x in "kv"},
        "eigen_attention": {
            x: torch.linalg.qr(torch.randn(layers, heads, dim, dim))[0].contiguous() for x in ("keys", "values")
        },
        "kv_heads_compress": {
            f"{x}2": torch.randn(layers, heads // 2, 2 * dim, dim) / dim**0.5 for x in ("keys", "values")
        },
        "chai": {"reps": torch.arange(heads).float().expand(layers, heads, heads) * 0},
    }
    for method, tensors in found.items():
        Calibrations(folder).save(method, tensors, {"what": "random numbers"})


class Steps:
    """Sequences of one policy, decoding, their contexts already in the pages."""

    def __init__(self, llm: LLM, kv: str, context: int, sequences: int, steps: int) -> None:
        self.engine, self.counters = llm._open().engine, llm._open().engine.counters
        params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, kv=kv)
        for index in range(sequences):
            ids = [8 + (7 * index + i) % 1000 for i in range(context)]
            self.engine.add(llm._intake.request(f"{kv}-{index}", ids, params))
        self.codec: Any = None
        for sequence in list(self.engine.scheduler.waiting):
            waiting: Any = sequence
            self.codec = waiting.policy.windowed
            self.store, encoded = waiting.store, waiting.policy.windowed is not None
            manager = self.store.manager
            whole = context - 1
            if encoded:  # encoded pages are full; what is left is computed, in the first step
                whole -= whole % manager.fmt.page_size
            self.store.shared.use(waiting.policy.reads)  # as the engine does when it admits
            manager.admit(waiting.seq_id, waiting.tokens, use_prefix=False)
            assert manager.reserve(waiting.seq_id, whole)
            manager.commit(waiting.seq_id, waiting.tokens[:whole])
            waiting.num_computed = whole
            self.engine.scheduler.remove(waiting)
            self.engine.scheduler.running[waiting.seq_id] = waiting

    def fill(self, filled: dict[int, int]) -> None:
        """Random numbers in all pages of the store but the first, ``filled`` by store, which have some."""
        manager, pages, which = self.store.manager, self.store.storage.pages, id(self.store)
        touched, first = manager.pool.num_touched_blocks * manager.fmt.pages_per_block, filled.get(which, 0)
        if pages.is_floating_point():
            pages[first:touched].normal_()
        elif self.codec is not None:
            encoded = self._encoded()
            count = torch.arange(max(0, touched - first)) % len(encoded)
            pages[first:touched, : encoded.shape[1]] = encoded[count]
        else:
            pages[first:touched].zero_()  # numbers of other bytes may be no numbers
        filled[which] = max(first, touched)

    def _encoded(self) -> torch.Tensor:
        """Pages ``[n, bytes]`` of random numbers, whatever the codec looks at beside them."""
        from pagoda.kv.policies._windowed import Seen

        fmt, queries = self.store.fmt, torch.randn(CONFIG["num_hidden_layers"], 16, CONFIG["num_attention_heads"], 64)
        k, v = (torch.randn(fmt.num_layers, fmt.num_kv_heads, 8, fmt.page_size, n) for n in (fmt.k_dim, fmt.v_dim))
        seen = Seen(self.store.learned, k.flatten(2, 3), queries[:, : max(self.codec.probes, 1)], 0.125)
        return self.codec.encode(k, v, seen).flatten(0, 2)

    def run(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> tuple[list[float], float]:
        """Seconds of each step, and the share of pages read."""
        before = self.counters.pages_read, self.counters.pages_held
        seconds = []
        for _ in range(steps):
            started = clock()
            self.engine.step()
            seconds.append(clock() - started)
        read, held = (now - then for now, then in zip((self.counters.pages_read, self.counters.pages_held), before))  # noqa: B905
        return seconds, read / held if held else 1.0

    def stop(self) -> None:
        """Abort all."""
        for request_id in list(self.engine._requests):
            self.engine.abort(request_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=[f"{name}(pages=0.1)" for name in NAMES])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--processor-time", action="store_true", help="of one thread")
    args = parser.parse_args()
    if args.kv == ["CODECS"]:
        args.kv = list(CODECS)
    clock, threads = time.perf_counter, args.threads
    if args.processor_time:
        clock, threads = time.process_time, 1
    found: dict[str, Any] = {kv: {"seconds": [], "ratios": [], "read": 1.0} for kv in args.kv}
    exact: list[float] = []
    filled: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        calibrate(Path(folder))
        llm = LLM(folder, memory="5GiB", enable_prefix_caching=False, num_threads=threads, max_num_seqs=64)
        for _ in range(args.rounds):
            for kv, mine in found.items():
                measured = {}
                for one in ("exact", kv):  # side by side: the machine is another a minute later
                    batch = Steps(llm, one, args.context, args.sequences, args.steps + 4)
                    batch.fill(filled)
                    batch.run(3)  # the first looks at all pages once
                    measured[one], mine["read"] = batch.run(args.steps, clock)
                    batch.stop()
                mine["seconds"] += measured[kv]
                mine["ratios"].append(statistics.median(measured["exact"]) / statistics.median(measured[kv]))
                exact += measured["exact"]
        llm.close()
    print(f"{'exact':24} {statistics.median(exact) * 1e3:8.1f} ms a step")
    for kv, mine in found.items():
        step, ratio = statistics.median(mine["seconds"]), statistics.median(mine["ratios"])
        print(f"{kv:24} {step * 1e3:8.1f} ms a step   {ratio:5.2f}x exact   {mine['read']:.1%} of pages read")


if __name__ == "__main__":
    main()
