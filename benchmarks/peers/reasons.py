"""Why a figure is short of what is asked, in a sentence for the table: (machine, shape, weights, setting, metric, of).

Shown only while the figure is short.
"""

from __future__ import annotations

from typing import NamedTuple

from .aims import BEST, LIMIT

AMD, XEON = "amd-epyc-25-17", "intel-xeon-6-167"
MASKED = f"{XEON}-without-amx-tile"


class Reason(NamedTuple):
    """reachable: the machine would allow what is asked, by the limits of the table and by kernels that exist."""

    text: str
    reachable: bool = False


PROMPTS_AMD = Reason(
    "products reach 94 % of the registers, attention 73 to 78 %, both in a step 84 to 87 %; "
    "asked are 86 to 89 % ([prompts](#prompts-in-bf16-without-amx))"
)
MASKED_SHARED = Reason(
    "products reach 72 to 75 % of what float32 does on registers, attention takes 37 of 140 ms "
    "([why](#with-amx-masked))",
    reachable=True,
)

REASONS: dict[tuple[str, str, str, str, str, str], Reason] = {
    (XEON, "qwen05b", "bf16", "shared", "decode", "vllm"): Reason(
        "the ratio changes with the hour, from 1.9 to 2.3 ([shared beginning](#32-requests-on-one-beginning))"
    ),
    (XEON, "llama1b", "bf16", "shared", "decode", "vllm"): Reason(
        "the ratio changes with the hour, from 1.97 to 2.18 ([shared beginning](#32-requests-on-one-beginning))"
    ),
    (AMD, "qwen05b", "bf16", "c4096", "prefill", BEST): PROMPTS_AMD,
    (AMD, "qwen05b", "bf16", "c8192", "prefill", BEST): PROMPTS_AMD,
    (AMD, "llama1b", "bf16", "c4096", "prefill", BEST): PROMPTS_AMD,
    (AMD, "qwen05b", "bf16", "b1", "decode", LIMIT): Reason(
        "the machine changed between 35 and 60 GB/s within repetitions (spread 34 %); one at 38 GB/s had 90 %"
    ),
    (AMD, "qwen05b", "bf16", "shared", "decode", "vllm"): Reason(
        "an older build, once; asked are 94 % of the registers ([shared beginning](#32-requests-on-one-beginning))"
    ),
    (AMD, "qwen05b", "int8", "shared", "decode", "vllm"): Reason(
        "asked are 79 % of the registers ([shared beginning](#32-requests-on-one-beginning))", reachable=True
    ),
    (AMD, "qwen05b", "int4", "b32", "decode", BEST): Reason(
        "asked are 55 % of the registers; the products alone take 40 of 65 ms, the rest has no profile there",
        reachable=True,
    ),
    (AMD, "qwen05b", "int4", "c8192", "prefill", BEST): Reason(
        "once; with KV in 8 bits, as OpenVINO's is, three times, 1.37 by medians", reachable=True
    ),
    (MASKED, "qwen05b", "bf16", "shared", "decode", "vllm"): MASKED_SHARED,
}
