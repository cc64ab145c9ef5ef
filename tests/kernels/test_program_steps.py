"""Instructions of a program that run as one, against the same ones apart."""

from typing import Any

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.quantize import pack
from pagoda.kernels.step import StepArrays

from .isas import ISAS

ZERO_POINTS = {"group": 64, "symmetric": False}
FORMS = [("bf16", {}), ("int8", {}), ("ternary", {}), ("int4", {"group": 128}), ("int4", ZERO_POINTS)]


def no_sequences() -> StepArrays:
    none = torch.zeros(1, 1, 1, dtype=torch.int32)
    layout = PageLayout(16, 8, 8, torch.bfloat16)
    starts = torch.zeros(2, dtype=torch.int32)
    return StepArrays(
        torch.zeros(1, layout.page_elems, dtype=torch.bfloat16), layout, none, none[0], none, none, starts, none, none
    )


def check_together(
    make: Make,
    sizes: tuple[int, int, int],
    weight: Any,
    bias: torch.Tensor | None,
    down: Any,
    dynamic: bool,
    isa: str,
    down_dynamic: bool = False,
) -> None:
    """A gated layer of ``sizes`` (tokens, hidden, inner) has the bits that it has where a clip that changes nothing
    keeps its product and its activation apart.
    """
    from pagoda.kernels.program import Program

    tokens, hidden, inner = sizes
    results = []
    for apart in (False, True):
        program = Program(torch.bfloat16, [hidden, 2 * inner, inner])
        program.linear(0, 1, weight, bias, dynamic=dynamic)
        if apart:
            program.clip(1, 1e30)
        program.activation(1, 2, "silu", gated=True)
        program.linear(2, 0, down, None, dynamic=down_dynamic)
        results.append(program.run(make.normal(tokens, hidden), torch.arange(tokens), [], no_sequences(), isa))
    assert results[0].abs().max() > 0
    assert torch.equal(*results), sizes


@pytest.mark.parametrize("isa", ISAS[-3:])
@pytest.mark.parametrize(("form", "options"), FORMS, ids=str)
def test_a_product_that_ends_with_its_activation_has_the_bits_of_both(
    form: str, options: dict[str, object], isa: str
) -> None:
    """Many tokens and few, inputs in one piece and in several, tiles of few tokens, a bias; six run apart either way.

    261 and 270: a few more than the items of 256 (by tiles of AMX) and 264 (by vectors).
    """
    shapes = (
        (193, 200, 48),
        (199, 200, 80),
        (261, 200, 48),
        (270, 2300, 16),
        (530, 72, 64),
        (6, 200, 48),
        (7, 200, 48),
        (13, 72, 80),
        (30, 200, 48),
        (64, 2300, 32),
    )
    for tokens, hidden, inner in shapes:
        make = Make(torch.bfloat16)
        weight = pack(make.normal(2 * inner, hidden, scale=hidden**-0.5, dtype=torch.float32), form, **options)
        bias, down = make.normal(2 * inner), pack(make.normal(hidden, inner, dtype=torch.float32), "bf16")
        check_together(make, (tokens, hidden, inner), weight, bias, down, form != "bf16", isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("form", "options"), FORMS, ids=str)
def test_tokens_that_pass_some_at_a_time_have_the_bits_of_all_at_once(
    form: str, options: dict[str, object], dtype: torch.dtype, isa: str
) -> None:
    """One part, two that differ by a token, three; a norm between the products; two layers in the same registers."""
    from pagoda.kernels.program import Program

    hidden, inner = 64, 96
    norm = {"eps": 1e-6, "offset": 0.0, "centred": False, "round_first": True}
    for tokens in (512, 513, 1200):
        make, dynamic = Make(dtype), form != "bf16"
        ups = [pack(make.normal(2 * inner, hidden, dtype=torch.float32), form, **options) for _ in range(2)]
        downs = [pack(make.normal(hidden, inner, scale=0.01, dtype=torch.float32), form, **options) for _ in range(2)]
        gain, x, found, room = make.normal(inner), make.normal(tokens, hidden), [], []
        for passing in ((), (1, 2)):
            program = Program(dtype, [hidden, 2 * inner, inner, hidden], passing)
            for up, down in zip(ups, downs, strict=True):
                program.linear(0, 1, up, None, dynamic=dynamic)
                program.activation(1, 2, "silu", gated=True)
                program.norm(2, 2, gain, None, **norm)
                program.linear(2, 3, down, None, dynamic=dynamic)
                program.add(3, 0)
            found.append(program.run(x.clone(), torch.arange(tokens), [], no_sequences(), isa))
            room.append(program.workspace_bytes(tokens))
        assert found[0].isfinite().all()
        assert torch.equal(*found), tokens
        spared = (tokens - 512) * 3 * inner * dtype.itemsize
        assert room[0] - room[1] == pytest.approx(spared, abs=256)


@pytest.mark.parametrize("isa", ISAS[-3:])
@pytest.mark.parametrize(("form", "dynamic"), [("bf16", False), ("int8", False), ("int8", True)])
@pytest.mark.parametrize(
    ("down_form", "options", "down_dynamic"),
    [
        ("bf16", {}, False),
        ("int8", {}, False),
        ("int8", {}, True),
        ("ternary", {}, True),
        ("int4", {"group": 32}, False),
        ("int4", {"group": 32}, True),
    ],
    ids=str,
)
def test_few_tokens_pass_through_a_gated_layer_with_the_bits_of_three_steps(
    form: str, dynamic: bool, down_form: str, options: dict[str, object], down_dynamic: bool, isa: str
) -> None:
    """Whole tiles of columns (32) and not; one and two tiles of tokens, and more than are passed on in tiles."""
    shapes = ((1, 72, 64), (5, 72, 96), (16, 200, 32), (17, 104, 160), (32, 200, 48), (32, 72, 416), (33, 72, 64))
    for tokens, hidden, inner in shapes:
        make = Make(torch.bfloat16)
        weight = pack(make.normal(2 * inner, hidden, scale=hidden**-0.5, dtype=torch.float32), form)
        down = pack(make.normal(hidden, inner, dtype=torch.float32), down_form, **options)
        check_together(make, (tokens, hidden, inner), weight, None, down, dynamic, isa, down_dynamic)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_sum_and_the_norm_of_what_it_leaves_have_the_bits_of_both(dtype: torch.dtype, isa: str) -> None:
    """Rows of one item and of several, ends of registers; a norm into another register and in place."""
    from pagoda.kernels.program import Program

    options = {"eps": 1e-6, "offset": 0.0, "centred": False, "round_first": True}
    for tokens, hidden, scale, to in ((1, 40, 1.0, 2), (33, 896, 1.0, 2), (33, 100, 0.3, 0), (70, 1100, 1.0, 0)):
        make = Make(dtype)
        weight, product = make.normal(hidden), pack(make.normal(hidden, hidden, dtype=torch.float32), "fp32")
        x, results = make.normal(tokens, hidden), []
        for apart in (False, True):
            program = Program(dtype, [hidden] * 3)
            program.linear(0, 1, product, None, dynamic=False)
            program.add(1, 0, scale)
            if apart:
                program.clip(0, 1e30)
            program.norm(0, to, weight, None, **options)
            if to != 0:
                program.add(to, 0, 0.5)
            assert len(program) == (5 if apart else 3) - (to == 0)
            results.append(program.run(x.clone(), torch.arange(tokens), [], no_sequences(), isa))
        assert results[0].isfinite().all()
        assert torch.equal(*results), (tokens, hidden)


@pytest.mark.parametrize("isa", ISAS[-3:])
@pytest.mark.parametrize(("form", "options", "dynamic"), [
    ("bf16", {}, False), ("int8", {}, False), ("int8", {}, True), ("ternary", {}, True), ("int4", {"group": 32}, True),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_a_product_its_sum_and_the_norm_have_the_bits_of_three_steps(
    form: str, options: dict[str, object], dynamic: bool, scale: float, isa: str
) -> None:
    """Whole tiles of results (32) and not; one and two tiles of tokens, and more than are passed on in tiles; a branch
    that is read once more.
    """
    from pagoda.kernels.program import Program

    shapes = ((1, 64, 72), (5, 96, 64), (16, 416, 64), (17, 160, 64), (32, 2048, 128), (32, 80, 64), (33, 64, 96))
    options_of_norm = {"eps": 1e-5, "offset": 0.0, "centred": False, "round_first": True}
    for tokens, hidden, inner in shapes:
        make = Make(torch.bfloat16)
        weight = pack(make.normal(hidden, inner, scale=inner**-0.5, dtype=torch.float32), form, **options)
        back = pack(make.normal(inner, hidden, scale=hidden**-0.5, dtype=torch.float32), "bf16")
        bias, gain, x = make.normal(hidden), make.normal(hidden), make.normal(tokens, hidden)
        for again in (False, True):
            results = []
            for apart in (False, True):
                program = Program(torch.bfloat16, [hidden, hidden, inner, hidden])
                program.norm(0, 1, gain, None, **options_of_norm)
                program.linear(1, 2, back, None, dynamic=False)
                program.linear(2, 3, weight, bias, dynamic=dynamic)
                if apart:
                    program.clip(3, 1e30)
                program.add(3, 0, scale)
                program.norm(0, 1, gain, None, **options_of_norm)
                program.add(1, 0)
                if again:
                    program.add(3, 0)
                results.append(program.run(x.clone(), torch.arange(tokens), [], no_sequences(), isa))
            assert results[0].abs().max() > 0
            assert torch.equal(*results), (tokens, hidden, inner, again)
