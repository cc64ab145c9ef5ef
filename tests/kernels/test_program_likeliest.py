"""The likeliest tokens of a step whose logits are not kept, against the logits' own."""

import pytest
import torch

from pagoda.kernels import ops
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.packed import PackedWeight
from pagoda.kernels.quantize import pack
from pagoda.kernels.step import StepArrays

from .isas import ISAS
from .threads import threads

FORMS = [
    ("bf16", {}, False),
    ("int8", {}, False),
    ("int8", {}, True),
    ("int4", {"group": 32}, True),
    ("fp32", {}, False),
]


def tokens_without_sequences(count: int) -> StepArrays:
    none = torch.zeros(1, 1, 1, dtype=torch.int32)
    layout = PageLayout(16, 8, 8, torch.bfloat16)
    starts, places = torch.tensor([0, count], dtype=torch.int32), torch.zeros(1, count, 1, dtype=torch.int32)
    pages = torch.zeros(1, layout.page_elems, dtype=torch.bfloat16)
    return StepArrays(pages, layout, none, none[0], none, none, starts, places, places)


class Head:
    """Tokens ``x`` through an embedding that holds them, into logits."""

    def __init__(self, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, dynamic: bool) -> None:
        from pagoda.kernels.program import Program

        self.program = Program(x.dtype, [x.shape[1]])
        self.program.embed(pack(x.float(), "bf16" if x.dtype == torch.bfloat16 else "fp32"))
        self.program.head(weight, None if bias is None else bias.to(x.dtype), dynamic=dynamic)

    def __call__(self, rows: list[int], isa: str, *, likeliest: bool) -> tuple[torch.Tensor, list[int]]:
        step = tokens_without_sequences(len(rows))
        return self.program.step(rows, rows, [], step, likeliest=likeliest, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "options", "dynamic"), FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_found_are_the_first_of_the_largest(
    form: str, options: dict[str, int], dynamic: bool, dtype: torch.dtype, isa: str
) -> None:
    """One token to more than 64, whose logits are kept; rows that end inside a panel, and inside what is looked at."""
    make = Make(dtype)
    for outputs in (1, 17, 512, 700, 3001):
        x, bias = make.normal(70, 64), make.normal(outputs)
        head = Head(
            x, pack(make.normal(outputs, 64, scale=0.1, dtype=torch.float32), form, **options), bias, dynamic=dynamic
        )
        logits = head(list(range(70)), isa, likeliest=False)[0].clone()
        wanted = ops.greedy(logits).tolist()
        for count in (1, 2, 17, 33, 64, 65, 70):
            for number in (1, 2, 5):
                with threads(number):
                    found = head(list(range(count)), isa, likeliest=True)[1]
                assert found == wanted[:count], (outputs, count, number)


@pytest.mark.parametrize("isa", ISAS[-2:])
def test_of_equals_the_first(isa: str) -> None:
    """Rows that are alike, in every slice; zeros of either sign; numbers below zero alone."""
    weight = torch.zeros(2000, 16)
    weight[[40, 900, 1990]] = 1.0
    head = Head(
        torch.stack([torch.ones(16), -torch.ones(16), torch.zeros(16)]).bfloat16(),
        pack(weight, "bf16"),
        None,
        dynamic=False,
    )
    assert head([0, 1, 2], isa, likeliest=True)[1] == [40, 0, 0]
    below = Head(torch.ones(1, 16).bfloat16(), pack(weight - 2.0, "bf16"), None, dynamic=False)
    assert below([0], isa, likeliest=True)[1] == [40]


@pytest.mark.parametrize("isa", ISAS[-2:])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [700, 999])
def test_where_no_token_is_possible_the_logits_say_why(row: int, value: float, isa: str) -> None:
    """-1, and the logits of all rows as if nothing had been searched."""
    bias = torch.zeros(1000)
    bias[row] = value
    if value == float("-inf"):
        bias[:] = value
    make = Make(torch.bfloat16)
    x, weight = make.normal(3, 32), pack(make.normal(1000, 32, dtype=torch.float32), "bf16")
    head = Head(x, weight, bias, dynamic=False)
    expected = head([0, 1, 2], isa, likeliest=False)[0].clone()
    head.program._logits.fill_(0.5)
    logits, found = head([0, 1, 2], isa, likeliest=True)
    assert found == ops.greedy(expected).tolist() == [-1, -1, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=0, equal_nan=True)


def test_the_logits_of_a_step_that_finds_all_tokens_are_not_written() -> None:
    make = Make(torch.bfloat16)
    head = Head(make.normal(4, 32), pack(make.normal(300, 32, dtype=torch.float32), "bf16"), None, dynamic=False)
    head([0, 1], "", likeliest=False)
    head.program._logits.fill_(0.5)
    logits, found = head([2, 3], "", likeliest=True)
    assert len(found) == 2
    assert bool((logits == 0.5).all())
