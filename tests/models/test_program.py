"""The decoder as one program against the same decoder op by op, and against transformers: every family that has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.core.types import Granularity
from pagoda.kv.view import StepView
from pagoda.models import families
from pagoda.models.scores import scored_by_parts
from pagoda.weights.quantization import in_panels, parse_quantization

from . import parity
from .kv_views import Dense, Paged

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")

MEMBERS = {
    f"{name}-{member}": config
    for name in families.names()
    for member, config in families.family(name).members().items()
}
ROPE_LENGTH = max(parity.PROMPT_LENS) + parity.NEW_TOKENS
PAGES = ((16, Granularity.SEQUENCE), (8, Granularity.LAYER), (4, Granularity.HEAD))
OP_BY_OP: dict[str, str] = {}  # families that are no programs, and why; all others are


def panels(config: dict[str, Any], state: dict[str, torch.Tensor]) -> parity.Model:
    return parity.load(config, state, rope_length=ROPE_LENGTH, quantization=in_panels("float32"))


@pytest.mark.parametrize("member", MEMBERS)
def test_program_equals_transformers(member: str) -> None:
    config = MEMBERS[member]
    twin = parity.twin(config)
    model = panels(config, twin.state_dict())
    reason = OP_BY_OP.get(member.split("-")[0])
    assert model.op_by_op == reason
    if reason is not None:
        pytest.skip(f"op by op: {reason}")
    tokens = parity.prompts(model.shape.vocab_size)
    page_size, granularity = PAGES[list(MEMBERS).index(member) % len(PAGES)]
    batch = parity.Run(model, Paged(model.shape, len(tokens), page_size=page_size, granularity=granularity), tokens)
    batch.prefill(parity.CHUNKS)
    batch.decode(parity.NEW_TOKENS)
    for s, prompt in enumerate(tokens):
        parity.assert_same(batch.all_logits(s), batch.tokens[s], len(prompt), twin, f"sequence {s} of a batch")


@pytest.mark.parametrize("member", ["llama-tiny", "gemma2-tiny", "stablelm-tiny", "cohere2-tiny"])
def test_program_equals_ops_in_bfloat16(member: str) -> None:
    """Where the reference rounds, the program rounds: logits of the same weights differ by accumulation order alone."""
    config = MEMBERS.get(member) or next(c for name, c in MEMBERS.items() if name.startswith(member.split("-")[0]))
    state = parity.twin(config).state_dict()
    options = {"dtype": torch.bfloat16, "rope_length": ROPE_LENGTH, "quantization": in_panels("bfloat16")}
    model = parity.load(config, state, **options)
    assert model.op_by_op is None
    logits = []
    for view in (Dense(), paged_bfloat16(model)):
        run = parity.Run(model, view, parity.prompts(model.shape.vocab_size, (33, 5)))
        run.prefill(((20, 2), (20, 3)))
        logits.append(torch.cat([run.all_logits(0), run.all_logits(1)]))
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert error < 0.02


def paged_bfloat16(model: parity.Model) -> Paged:
    return Paged(model.shape, 2, dtype="bfloat16")


ARRANGEMENTS = ["llama-tiny", "gemma2-tiny", "olmo2-tiny", "opt-350m", "cohere2-tiny", "falcon-new", "falcon-rw"]
STEPS = ((37, 9, 1), (20, 1, 3), (1, 1, 1))  # chunks of more and fewer than 64 rows, decodes beside them
WANTED = ((-1,), (), (-3, -2, -1))  # the last tokens of each sequence that are asked for, in turn


@pytest.mark.parametrize(
    ("member", "kv"),
    [*((member, "bfloat16") for member in ARRANGEMENTS), ("llama-tiny", "float32"), ("llama-tiny", "int8")],
)
def test_wanted_tokens_alone_have_the_same_bits(member: str, kv: str) -> None:
    """The last layer computes them and no others; what it leaves in the pages serves the next step as before. The same
    where the view attends by itself in every layer.
    """
    dtype = torch.float32 if kv == "float32" else torch.bfloat16
    wide_heads = {"head_dim": 64} if member == "llama-tiny" else {}  # products of bytes, and of few rows
    config = MEMBERS[member] | wide_heads
    state = parity.twin(config).state_dict()
    model = parity.load(config, state, dtype=dtype, rope_length=ROPE_LENGTH, quantization=in_panels(str(dtype)[6:]))
    assert model.op_by_op is None
    views = [Paged(model.shape, 3, dtype=kv) for _ in range(3)]
    generator = torch.Generator().manual_seed(2)
    done = torch.zeros(3, dtype=torch.int64)
    for turn, counts in enumerate(STEPS):
        ids = torch.randint(3, model.shape.vocab_size, (sum(counts),), generator=generator)
        positions = torch.cat([torch.arange(int(d), int(d) + n) for d, n in zip(done, counts, strict=True)])
        ends = torch.tensor(counts).cumsum(0)
        wanted = [int(ends[s]) + i for s in range(3) for i in WANTED[(s + turn) % 3] if -i <= counts[s]]
        rows = torch.tensor(wanted, dtype=torch.int64)
        with torch.inference_mode():
            whole = model.forward(ids, positions, views[0]([0, 1, 2], list(counts)))
            some = model.forward(ids, positions, views[1]([0, 1, 2], list(counts)), rows)
            called = model.forward(ids, positions, called_by_the_program(views[2]([0, 1, 2], list(counts))), rows)
        assert some.shape == (len(wanted), model.shape.hidden_size)
        assert torch.equal(some, whole[rows])
        assert torch.equal(called, some)
        done += torch.tensor(counts)


WHOLE = {"llama-tiny": True, "qwen2-tiny": True, "gemma2-tiny": False, "opt-350m": False, "cohere2-tiny": False}


@pytest.mark.parametrize("member", WHOLE)
def test_a_step_in_one_call_has_the_bits_of_its_parts(member: str) -> None:
    """From ids to logits and likeliest tokens, where nothing stands between embedding, blocks, head and logits; the
    model does the same in parts where something does.
    """
    config = MEMBERS.get(member) or families.family(member.split("-")[0]).tiny()
    model = parity.load(
        config, parity.twin(config).state_dict(), dtype=torch.bfloat16, rope_length=ROPE_LENGTH,
        quantization=in_panels("bfloat16"),
    )  # fmt: skip
    views, generator, done = [Paged(model.shape, 3, dtype="bfloat16") for _ in range(3)], torch.Generator(), [0, 0, 0]
    for turn, counts in enumerate((*STEPS, (1, 1, 1))):
        ids = torch.randint(3, model.shape.vocab_size, (sum(counts),), generator=generator).tolist()
        positions = [d + i for d, n in zip(done, counts, strict=True) for i in range(n)]
        ends = torch.tensor(counts).cumsum(0).tolist()
        wanted = [[end - 1 for end in ends], [ends[1] - 1], None, []][turn]
        with torch.inference_mode():
            scores = model.step(ids, positions, views[0]([0, 1, 2], list(counts)), wanted)
            found = model.step(ids, positions, views[2]([0, 1, 2], list(counts)), wanted, likeliest=True).likeliest
            parts = scored_by_parts(model, ids, positions, views[1]([0, 1, 2], list(counts)), wanted)
        assert torch.equal(scores.logits, parts.logits)
        assert scores.likeliest == parts.likeliest == []
        assert found == (parts.logits.argmax(-1).tolist() if WHOLE[member] else [])
        done = [d + n for d, n in zip(done, counts, strict=True)]


def test_a_step_after_one_that_had_no_memory_for_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not write where logits lay that were given back; those of no token are as wide as others."""
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    views, vocab_size = Paged(model.shape, 1), model.shape.vocab_size
    assert model.step([4], [0], views([0], [1]), []).logits.shape == (0, vocab_size)
    first = model.step([5, 6], [1, 2], views([0], [2]), [1]).logits.clone()
    empty, view = torch.empty, views([0], [2])

    def no_memory(*size: Any, **options: Any) -> torch.Tensor:
        if size == (2, vocab_size):
            raise MemoryError
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", no_memory)
    with pytest.raises(MemoryError):
        model.step([7, 8], [3, 4], view)
    monkeypatch.undo()
    again = Paged(model.shape, 1)
    model.step([4], [0], again([0], [1]), [0])
    assert torch.equal(model.step([5, 6], [1, 2], again([0], [2]), [1]).logits, first)


def test_what_no_step_can_run_is_refused() -> None:
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    views = Paged(model.shape, 1)
    with pytest.raises(IndexError, match="row"):
        model.step([4, model.shape.vocab_size, 6], [0, 1, 2], views([0], [3]))
    with pytest.raises(ValueError, match="2 tokens with 3 positions for a step of 3"):
        model.step([4, 5], [0, 1, 2], views([0], [3]))
    with pytest.raises(ValueError, match="4 tokens with 4 positions"):
        model.step([4, 5, 6, 7], [0, 1, 2, 3], views([0], [3]))


def called_by_the_program(view: StepView) -> StepView:
    view.arrays = lambda: None
    assert view.in_program
    return view


def test_what_attention_raises_ends_the_step() -> None:
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    view = called_by_the_program(Paged(model.shape, 1)([0], [3]))
    attend = view.attend

    def breaks(layer: int, *args: Any, **options: Any) -> torch.Tensor:
        if layer == 1:
            raise KeyError("no such page")
        return attend(layer, *args, **options)

    view.attend = breaks
    with pytest.raises(KeyError, match="no such page"):
        model.forward(torch.tensor([4, 5, 6]), torch.arange(3), view)


def test_only_the_last_tokens_can_be_wanted() -> None:
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    for wanted in ([0], [2, 1], [1, 1, 2], [-1], [3]):
        with pytest.raises(ValueError, match="wanted token"):
            model.forward(
                torch.tensor([4, 5, 6]), torch.arange(3), Paged(model.shape, 1)([0], [3]), torch.tensor(wanted)
            )


def test_integer_weights_run_as_one_program() -> None:
    config = MEMBERS["llama-tiny"] if "llama-tiny" in MEMBERS else families.family("llama").tiny()
    model = parity.load(
        config, parity.twin(config).state_dict(), rope_length=ROPE_LENGTH, quantization=parse_quantization("int8")
    )
    assert model.op_by_op is None
    runs = []
    for view in (Dense(), Paged(model.shape, 4)):
        run = parity.Run(model, view, parity.prompts(model.shape.vocab_size))
        run.prefill(parity.CHUNKS)
        run.decode(16)
        runs.append(run.tokens)
    assert runs[0] == runs[1]


def test_a_page_that_does_not_exist_is_refused() -> None:
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    paged = Paged(model.shape, 1)
    view = paged([0], [3])
    arrays = view.arrays()
    assert arrays is not None
    arrays.page_ids[0, 0, 0] = 10**6
    with pytest.raises(IndexError, match="page"):
        model.forward(torch.tensor([4, 5, 6]), torch.arange(3), view)
