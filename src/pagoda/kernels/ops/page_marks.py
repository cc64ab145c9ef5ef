"""What is noted of a page when it is full: the marks by which `page_scores` judges it.

Where a method's marks are made of each page by itself, or with what it found in the first look at a text, the kernels
make them in the step after a page became full, and no tensor is asked for anything; here it is said what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op
from .page_scores import PageRule, by_channel, corners, in_128ths, in_bytes, in_columns, means, unscaled


@dataclass(frozen=True, slots=True)
class MarkAids:
    """What marks are made with, beside keys, all contiguous and, but for what is projected with, float32.

    given    int8 ``[H, D, W]`` of queries that are projected (`PageRule`), by which keys are; ``[H, C, D]`` of codes
    weights  ``[H, 2, C]``: a key's code is that of the largest product * first + second, of equals the earlier
    metric   ``[H, D, D]``, symmetric: keys are multiplied with it before they meet codes
    freq     ``[D / 2]``: radians a position, by which keys are turned back to position 0; channels i and i + D / 2
    """

    given: Tensor | None = None
    weights: Tensor | None = None
    metric: Tensor | None = None
    freq: Tensor | None = None


NO_AIDS = MarkAids()


def page_marks(keys: Tensor, rule: PageRule, marks: Tensor, first: int, aids: MarkAids = NO_AIDS) -> None:
    """Notes the pages ``first`` … ``first + n - 1`` in ``marks`` ``[H, P, …]`` (as ``rule`` says, P > first + n - 1).

    keys float32 ``[H, n, page_size, D]``. Of rows and halves there are as many in a page as ``marks`` has room for, of
    as many slots each: boxes for queries that are split; else the mean key and, where there is room for one number
    more, its least cosine to one of those slots.
    """
    key = keys.device.type
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(key, (keys.dtype,)))
    run(keys, rule, marks, first, aids)


def reference(keys: Tensor, rule: PageRule, marks: Tensor, first: int, aids: MarkAids = NO_AIDS) -> None:
    heads, pages, size, dim = keys.shape
    if aids.freq is not None:
        at = torch.arange(first * size, (first + pages) * size, device=keys.device, dtype=torch.float32)
        angle = (at[:, None] * aids.freq).view(pages, size, -1)
        a, b = keys.chunk(2, -1)
        keys = torch.cat([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()], -1)
    marks[:, first : first + pages] = _made(keys, rule, marks, aids, (heads, pages, size, dim))


def _made(keys: Tensor, rule: PageRule, marks: Tensor, aids: MarkAids, shape: tuple[int, int, int, int]) -> Tensor:
    heads, pages, size, dim = shape
    if rule.marks in ("rows", "halves"):
        parts = keys.reshape(heads, pages, marks.shape[2], size // marks.shape[2], dim)
        return corners(parts) if rule.query == "split" else means(parts)[..., : marks.shape[3]]
    if rule.marks == "columns":
        return in_columns(keys)
    if rule.marks == "bytes":
        return in_bytes(keys if aids.given is None else keys @ unscaled(aids.given)[:, None])
    assert aids.given is not None
    assert aids.weights is not None
    near = keys.flatten(1, 2) if aids.metric is None else keys.flatten(1, 2) @ aids.metric
    worth = near @ aids.given.transpose(1, 2) * aids.weights[:, :1] + aids.weights[:, 1:]
    return worth.argmax(-1).view(heads, pages, size).to(torch.int16)


_OP = Op("page_marks", reference)
TOLERANCE = {torch.float32: (8e-3, 1e-3)}
"""A step of bfloat16, or of a byte: sums in another order may fall on its other side."""


def _case(
    make: Make,
    rule: PageRule,
    pages: int,
    heads: int = 2,
    dim: int = 32,
    size: int = 16,
    parts: int = 1,
    first: int = 0,
    odd: bool = False,
    turned: bool = False,
    num_given: int = 0,
    metric: bool = False,
) -> dict[str, object]:
    room, width = first + pages + 3, num_given or dim
    given = weights = None
    if rule.query == "project":
        given = in_128ths(make.normal(heads, dim, width))
    if rule.marks == "halves":
        marks = torch.zeros(heads, room, parts, 2 * dim if rule.query == "split" else dim + odd, dtype=torch.bfloat16)
    elif rule.marks == "rows":
        marks = torch.zeros(heads, room, parts, dim + odd)
    elif rule.marks == "columns":
        marks = by_channel(heads, room, dim + 2, size // 2)
    elif rule.marks == "bytes":
        marks = torch.zeros(heads, room, -(-width // 4) * 4 + 1, size, dtype=torch.uint8)
    else:
        marks = torch.zeros(heads, room, size, dtype=torch.int16)
        given, weights = make.normal(heads, num_given, dim), make.normal(heads, 2, num_given)
    near = make.normal(heads, dim, dim) if metric else None
    aids = MarkAids(given, weights, near @ near.transpose(1, 2) if near is not None else None,
                    make.normal(dim // 2).abs() if turned else None)  # fmt: skip
    return {"keys": make.normal(heads, pages, size, dim), "rule": rule, "marks": marks, "first": first, "aids": aids}


def _cases() -> list[dict[str, object]]:
    boxes, codes = PageRule("halves", "split"), PageRule("codes", weigh="peak")
    whole, half = PageRule("rows", weigh="softmax"), PageRule("halves", weigh="softmax")
    return [
        {"rule": boxes, "pages": 3},
        {"rule": boxes, "pages": 1, "parts": 4, "first": 5, "heads": 3, "dim": 13},
        {"rule": boxes, "pages": 0},
        {"rule": whole, "pages": 4, "odd": True},
        {"rule": whole, "pages": 1, "first": 7, "dim": 20, "size": 8},
        {"rule": whole, "pages": 2, "first": 1, "parts": 4, "odd": True},
        {"rule": half, "pages": 3, "parts": 2, "odd": True},
        {"rule": half, "pages": 2, "first": 3, "dim": 13, "parts": 3, "size": 24},
        {"rule": PageRule("columns", "thin", "softmax", rank=5), "pages": 2, "first": 3, "size": 8},
        {"rule": PageRule("columns", weigh="peak"), "pages": 5, "dim": 13},
        {"rule": PageRule("bytes"), "pages": 4, "dim": 13, "size": 8},
        {"rule": PageRule("rows", "turn"), "pages": 2, "first": 500, "turned": True, "odd": True},
        {"rule": PageRule("bytes"), "pages": 2, "size": 4, "first": 1},
        {"rule": codes, "pages": 3, "num_given": 21},
        {"rule": PageRule("codes", "turn", "peak"), "pages": 2, "num_given": 64, "metric": True, "turned": True},
        {"rule": codes, "pages": 2, "num_given": 3, "size": 8, "dim": 20},
    ]  # fmt: skip


CASES = [replace(case, writes=("marks",)) for case in cross("marks", _case, *_cases())]
