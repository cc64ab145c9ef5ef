"""The C++ bodies of page scores and marks. Within a program of a whole step the same ones run (csrc/choice.hpp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu, store_of
from .dispatch import Features
from .ops.page_marks import NO_AIDS, MarkAids
from .ops.page_scores import KeyPages, PageRule


def page_scores(
    queries: Tensor,
    rule: PageRule,
    marks: Tensor | None,
    held: Sequence[int],
    *,
    scale: float = 1.0,
    given: Tensor | None = None,
    turn: Tensor | None = None,
    outliers: int = 0,
    keys: KeyPages | None = None,
    isa: str = "",
) -> Tensor:
    """As `ops.page_scores`. For tests: ``isa`` fixes the instruction set."""
    heads, group, dim = queries.shape
    queries = queries.contiguous()
    if marks is not None:
        width = marks.shape[1]
        if rule.marks == "columns":
            marks = marks if _is_by_channel(marks) else marks.transpose(1, 2).contiguous().transpose(1, 2)
        elif not marks[:1].is_contiguous():
            marks = marks.contiguous()
        room = marks.stride(0) // max(1, marks[0, :1].numel()) if width else 0
        place = (0, 0, 0, 0, 0)
    else:
        assert keys is not None
        width, room = keys.ids.shape[1], 0
        layout, ids = keys.layout, keys.ids.to(torch.int32).contiguous()
        place = (keys.pages.data_ptr(), keys.pages.shape[0], store_of(layout), layout.v_dim, ids.data_ptr())
    page_size = keys.layout.page_size if keys is not None else 0
    out = queries.new_zeros(heads, width)
    given = None if given is None else _given(rule, given)
    turn = None if turn is None else turn.float().contiguous()
    _cpu.page_scores(
        queries.data_ptr(), heads, group, dim, rule.numbers(marks, page_size), scale,
        _at(marks), room, _at(given), 0 if given is None else given.shape[1], _at(turn), outliers,
        list(held), *place, width, out.data_ptr(), isa,
    )  # fmt: skip
    return out


def page_marks(
    keys: Tensor, rule: PageRule, marks: Tensor, first: int, aids: MarkAids = NO_AIDS, *, isa: str = ""
) -> None:
    """As `ops.page_marks`. For tests: ``isa`` fixes the instruction set."""
    heads, pages, page_size, dim = keys.shape
    assert first + pages <= marks.shape[1]
    assert _is_by_channel(marks) if rule.marks == "columns" else marks.is_contiguous()
    keys = keys.contiguous()
    given = None if aids.given is None else _given(rule, aids.given)
    _cpu.page_marks(
        keys.data_ptr(), heads, pages, page_size, dim, rule.numbers(marks, page_size), first, marks.data_ptr(),
        marks.shape[1], _at(given), 0 if given is None else given.shape[1], _at(aids.weights),
        _at(aids.metric), _at(aids.freq), isa,
    )  # fmt: skip


def _given(rule: PageRule, given: Tensor) -> Tensor:
    return given.to(torch.int8 if rule.query == "project" else torch.float32).contiguous()


def _is_by_channel(marks: Tensor) -> bool:
    heads, page, channel, slot = marks.stride()
    return slot == 1 and page == marks.shape[3] and channel % page == 0 and heads == marks.shape[2] * channel


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


dispatch.register("page_scores", "cpu", page_scores, Features(CPU, frozenset({torch.float32})))
dispatch.register("page_marks", "cpu", page_marks, Features(CPU, frozenset({torch.float32})))
