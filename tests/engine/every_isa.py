"""What lantern says by each instruction set, as JSON: ``python -m tests.engine.every_isa none base avx2 …``.

The set is chosen when the extension is loaded, so each name gets a process of its own; torch is imported once for all.
``none``: as where there was no compiler, so that the reference kernels serve.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing import get_context
from typing import Any

NUM = 20
# The last two begin alike for more than a page, so that their beginning is attended to once.
ALIKE = "The big dog and the little cat lived in a house by the sea. They liked to play in the warm sand all day. "
PROMPTS = ["Once upon a time", "Lily and Tom went to the park.", ALIKE + "One day", ALIKE + "The cat"]
WEIGHTS = (("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "w8a8"), ("bfloat16", "w4a8"))


def answers(name: str) -> dict[str, Any]:
    """Of an instruction set: which it was, and tokens, together and alone, by weights."""
    os.environ["PAGODA_EXTENSION" if name == "none" else "PAGODA_ISA"] = name
    from pagoda.kernels.dispatch import available

    if name == "none":
        return {"isa": available().missing["cpu"], "float32 auto": said("float32", "auto")}
    from pagoda.kernels._extension import best_isa

    return {"isa": best_isa()} | {
        f"{dtype} {quantization}": said(dtype, quantization) for dtype, quantization in WEIGHTS
    }


def said(dtype: str, quantization: str) -> dict[str, Any]:
    from pagoda import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NUM, ignore_eos=True)
    with LLM("lantern", memory="1GiB", dtype=dtype, quantization=quantization, num_threads=1) as llm:
        together = [output.token_ids for output in llm.generate(PROMPTS, params)]
        alone = [llm.generate([prompt], params)[0].token_ids for prompt in PROMPTS]
        return {"together": together, "alone": alone, "op by op": llm._open().loaded.model.op_by_op}


if __name__ == "__main__":
    import tokenizers  # noqa: F401
    import torch  # noqa: F401

    with get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        print(json.dumps(dict(zip(sys.argv[1:], pool.map(answers, sys.argv[1:], chunksize=1), strict=True))))
