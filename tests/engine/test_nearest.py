"""The budget that a refusal names is enough: all needs are added up before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import DRIFT_BYTES
from pagoda.cli.quantize import _load
from pagoda.core.errors import BudgetError

PARAMS = SamplingParams(max_tokens=4, temperature=0)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """What an engine imports is there: a process that was refused and one that starts anew are as large."""
    with LLM("lantern", memory="3GiB", num_threads=1) as llm:
        llm.generate("Once", PARAMS)


def nearest(error: BudgetError) -> int:
    (found,) = re.findall(r"the nearest budget that can is (\d+)MiB", str(error))
    return int(found) << 20


SERVED = {"reserve_bytes": 64 << 20}


@pytest.mark.parametrize(
    "options",
    [
        {},
        SERVED,
        SERVED | {"kv_host": "300MiB"},
        {"kv_offload": "64MiB", "max_model_len": 512, "weights": "resident", "quantization": "int4"},
    ],
    ids=["run", "serve", "kv_host", "offload"],
)
def test_typed_back_it_works(options: dict[str, Any]) -> None:
    options = {"num_threads": 1} | options
    with pytest.raises(BudgetError, match=r"this needs .* \(weights .*, KV of \d+ tokens ") as refused:
        LLM("lantern", memory="64MiB", **options)
    enough = nearest(refused.value)
    with LLM("lantern", memory=enough, **options) as llm:
        assert llm.generate("Once", PARAMS)[0].error is None
    with pytest.raises(BudgetError) as again:
        LLM("lantern", memory=enough - 2 * DRIFT_BYTES, **options)
    assert abs(nearest(again.value) - enough) <= DRIFT_BYTES


def test_so_does_that_of_a_load() -> None:
    with pytest.raises(BudgetError, match=r"this needs .* \(weights .*, tensors while loading ") as refused:
        _load("lantern", "64MiB")
    loaded = _load("lantern", str(nearest(refused.value)))
    loaded.close()
