"""How much each full page of a head promises the queries of its group: what page selections choose by.

What is looked at of a page, its *marks*, is small: the corners of boxes around its keys, their mean, a few numbers of
each key, the number of each key's codeword; or it is the keys themselves. A product with each mark either is the score
(the page's largest counts), or is weighed against those of all pages first::

    product    the largest of the page's products and the group's heads
    softmax    over all marks of a head, heads summed (or the largest of them), summed over the page
    peak       e^(product - the head's largest), the same

Papers: Quest (arXiv:2406.10774, section 3.3), LServe (arXiv:2502.14866, 3.5), Loki (arXiv:2406.02542), SparQ
(arXiv:2312.04985), ShadowKV (arXiv:2410.21465), TokenSelect (arXiv:2411.02886), ClusterKV (arXiv:2412.03213), and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...core.errors import ConfigError
from ..case import Make, cross
from ..dispatch import Needs, Op
from ..layout import PageLayout
from ._paged import gather

MARKS = ("rows", "columns", "codes", "keys", "bytes", "halves")
QUERIES = ("plain", "split", "project", "turn", "thin")
WEIGHS = ("product", "softmax", "peak")


@dataclass(frozen=True, slots=True)
class PageRule:
    """How pages are judged. H kv-heads, P pages of B marks (or slots), W numbers in a mark.

    marks   rows     float32 ``[H, P, B, W]``
            halves   bfloat16, the same
            columns  uint8 ``[H, P, W + 2, B / 2]`` (`in_columns`), a mark of four bits a number for every slot and
                     last a byte of its scale, laid out channel by channel: ``[H, W + 2, P, B / 2]`` in memory
                     (`by_channel`); queries are rounded to 127ths of a head's largest number. B is even
            bytes    uint8 ``[H, P, W4 + 1, B]`` (`in_bytes`): a byte a number, four channels at a time, W4 / 4 times
                     ``[B, 4]``, then the scales; queries as for columns, projected ones as wide as the marks
            codes    int16 ``[H, P, B]``: the number of each slot's vector in ``given [H, C, W]``
            keys     the keys in the pages
    query   plain    as it is, W = D              split    max(q, 0) beside min(q, 0), W = 2 D
            project  times ``given [H, D, W]``, int8 numbers of 128ths, W a multiple of four
            turn     rotated by ``turn``, W = D
            thin     its ``rank`` channels that are largest over the group, grown by the root of the share of the query
                     that they are; of columns of all channels
    weigh   product (not of keys or columns), softmax or peak; then heads are summed, or the largest of them counts
    """

    marks: Literal["rows", "columns", "codes", "keys", "bytes", "halves"] = "rows"
    query: Literal["plain", "split", "project", "turn", "thin"] = "plain"
    weigh: Literal["product", "softmax", "peak"] = "product"
    sum_heads: bool = False
    rank: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for what no op does."""
        if self.weigh == "product" and self.marks in ("keys", "columns"):
            raise ConfigError(f"pages judged by {self.marks} are weighed by softmax or peak, not by the product")
        if (self.query == "thin" and self.marks != "columns") or (
            self.marks == "keys" and self.query not in ("plain", "turn")
        ):
            raise ConfigError(f"queries that are {self.query} are not compared with {self.marks}")

    def numbers(self, marks: Tensor | None, page_size: int, first_page: bool = False) -> list[int]:
        """As `csrc/page_scores.hpp` reads it."""
        per_page, stride = page_size, 0
        if self.marks in ("rows", "halves"):
            assert marks is not None
            per_page, stride = marks.shape[2], marks.shape[3]
        elif self.marks in ("columns", "bytes"):
            assert marks is not None
            stride, per_page = marks.shape[2], marks.shape[3] * (2 if self.marks == "columns" else 1)
        elif self.marks == "codes":
            assert marks is not None
            per_page = marks.shape[2]
        kinds = MARKS.index(self.marks), QUERIES.index(self.query), WEIGHS.index(self.weigh)
        return [*kinds, self.sum_heads, per_page, stride, self.rank, first_page]


def by_channel(heads: int, pages: int, channels: int, slots: int) -> Tensor:
    """Zeros, uint8 ``[heads, pages, channels, slots]``, laid out channel by channel."""
    return torch.zeros(heads, channels, pages, slots, dtype=torch.uint8).transpose(1, 2)


def in_bytes(numbers: Tensor) -> Tensor:
    """Numbers of slots ``[H, P, B, W]`` as marks: uint8 ``[H, P, W4 + 1, B]``, W4 the next multiple of four. A number
    is (byte - 128) times its slot's scale, whose byte comes last: 1, 1.125, … 1.875 times 2^-24 … 2^7, the least by
    which no byte is above 255.
    """
    codes, scales = _coded(torch.nn.functional.pad(numbers.float(), (0, -numbers.shape[-1] % 4)))
    words = codes.unflatten(-1, (-1, 4)).transpose(2, 3).reshape(*codes.shape[:2], codes.shape[3], codes.shape[2])
    return torch.cat([words, scales.unsqueeze(2)], 2)


def in_128ths(given: Tensor) -> Tensor:
    """A matrix of each head ``[H, D, W]`` as queries are projected with: int8, contiguous; the largest becomes 127."""
    return (given * (127 / given.abs().amax((1, 2), keepdim=True))).round_().to(torch.int8).contiguous()


def unscaled(given: Tensor) -> Tensor:
    """What ``given [H, D, W]`` of projected queries stands for: float32."""
    return given.float() / 128


def corners(keys: Tensor) -> Tensor:
    """Keys of boxes ``[…, n, D]`` as marks in halves: bfloat16 ``[…, 2 D]``, each channel's largest number, then its
    smallest, both further out by 1 / 256, which is more than rounding takes: no key in a box is above its bound.
    """
    high, low = keys.amax(-2), keys.amin(-2)
    outer = torch.add(high, high.abs(), alpha=1 / 256), torch.sub(low, low.abs(), alpha=1 / 256)
    return torch.cat(outer, -1).bfloat16()


def means(keys: Tensor) -> Tensor:
    """Keys of parts ``[…, n, D]`` as rows: float32 ``[…, D + 1]``, the mean and its least cosine to one of them."""
    mean = keys.mean(-2)
    alike = cosine_similarity(keys, mean.unsqueeze(-2), dim=-1).amin(-1)
    return torch.cat([mean, alike[..., None]], -1)


SCALE_OF_ZERO, SCALE_SHIFT = (127 - 24) << 3, 20


def in_columns(numbers: Tensor) -> Tensor:
    """Numbers of slots ``[H, P, B, W]`` as marks: uint8 ``[H, P, W + 2, B / 2]``. Of the bytes that `in_bytes` would
    make four bits stay, of -7 … 7 sixteenths. Slots lie in groups of 16 (of B, where that is no multiple): the first
    half of a group has the lower bits of its bytes, the second half the upper. Scales are bytes, half a group a row.
    """
    codes, scales = _coded(numbers.float(), 16)
    first, second = _halves(codes.transpose(2, 3) >> 4)  # [H, P, W, B / 2]
    return torch.cat([first | second << 4, torch.stack(_halves(scales), 2)], 2)


def _halves(slots: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second halves of groups ``[…, B]``: ``[…, B / 2]`` each."""
    size = slots.shape[-1]
    first, second = slots.unflatten(-1, (-1, 2, _group(size) // 2)).unbind(-2)
    return first.flatten(-2), second.flatten(-2)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """What `_halves` took apart."""
    half = _group(2 * first.shape[-1]) // 2
    return torch.stack([first.unflatten(-1, (-1, half)), second.unflatten(-1, (-1, half))], -2).flatten(-3)


def _group(size: int) -> int:
    return size if size % 16 else 16


def _coded(numbers: Tensor, step: int = 1) -> tuple[Tensor, Tensor]:
    """The bytes of numbers ``[…, W]``, multiples of ``step`` beside 128, and of each row's scale."""
    most = 127 // step
    least = (numbers.abs().amax(-1) / (most * step)).view(torch.int32)
    scales = ((least + (1 << SCALE_SHIFT) - 1 >> SCALE_SHIFT) - SCALE_OF_ZERO).clamp_(0, 255).to(torch.uint8)
    codes = (numbers / _scales_of(scales)[..., None] / step).clamp_(-most, most).round_().mul_(step).add_(128)
    return codes.to(torch.uint8), scales


def out_of_columns(marks: Tensor) -> Tensor:
    """float32 ``[H, P, W, B]``."""
    fours = marks[:, :, :-2]
    codes = _joined(fours << 4, fours & 0xF0).float() - 128
    return codes * _scales_of(_joined(marks[:, :, -2], marks[:, :, -1]))[:, :, None]


def _scales_of(scales: Tensor) -> Tensor:
    return (scales.to(torch.int32) + SCALE_OF_ZERO << SCALE_SHIFT).view(torch.float32)


def _out_of_bytes(marks: Tensor) -> Tensor:
    """float32 ``[H, P, B, W4]``."""
    heads, pages, channels, slots = marks.shape
    words = marks[:, :, :-1].reshape(heads, pages, channels // 4, slots, 4)
    return (words.transpose(2, 3).flatten(3).float() - 128) * _scales_of(marks[:, :, -1])[..., None]


@dataclass(frozen=True, slots=True)
class KeyPages:
    """Where the keys of a head's pages are: ids int32 ``[H, P]`` in ``pages``."""

    pages: Tensor
    layout: PageLayout
    ids: Tensor


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
) -> Tensor:
    """queries float32 ``[H, G, D]``, marks as ``rule`` says (P pages) -> float32 ``[H, P]``; what lies behind the
    ``held[h]`` pages of a head is 0.

    scale     above 0; of products that are weighed
    turn      float32 ``[D]``: cosines of the D / 2 angles, then their sines; channel i turns with channel i + D / 2
    outliers  so many pages with the smallest last number of a row, one more than W, get 2 more (softmax or peak).
              Raises ConfigError for marks that are neither rows nor halves, and for the product.
    keys      in place of ``marks``. Raises IndexError for a page that does not exist.
    """
    if outliers and (rule.marks not in ("rows", "halves") or rule.weigh == "product"):
        raise ConfigError(
            f"outliers={outliers} of pages judged by {rule.marks}, weighed by {rule.weigh}; "
            "accepted: 0, or rows or halves, weighed by softmax or peak"
        )
    key = queries.device.type
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(key, (queries.dtype,)))
    out: Tensor = run(queries, rule, marks, held, scale=scale, given=given, turn=turn, outliers=outliers, keys=keys)
    return out


def reference(
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
) -> Tensor:
    q, channels = _prepared(queries, rule, given, turn)
    heads, group, width = q.shape
    if rule.marks == "keys":
        assert keys is not None
        vectors = gather(keys.pages, keys.layout, keys.ids, torch.float32)[0]
        pages, per_page = keys.ids.shape[1], keys.layout.page_size
    elif rule.marks == "codes":
        assert marks is not None
        assert given is not None
        vectors, (pages, per_page) = given, marks.shape[1:]
    elif rule.marks in ("rows", "halves"):
        assert marks is not None
        pages, per_page = marks.shape[1:3]
        vectors = marks[..., :width].float().flatten(1, 2)
    elif rule.marks == "bytes":
        assert marks is not None
        pages, per_page, q = marks.shape[1], marks.shape[3], _rounded(q)
        vectors = _out_of_bytes(marks)[..., :width].flatten(1, 2)
    else:
        assert marks is not None
        columns = out_of_columns(marks)
        if channels is None:
            q = _rounded(q)
        else:
            index = channels[:, None, :, None].expand(heads, columns.shape[1], width, columns.shape[3])
            columns = columns.gather(2, index)
        pages, per_page = columns.shape[1], columns.shape[3]
        vectors = columns.transpose(2, 3).flatten(1, 2)
    there = torch.arange(pages, device=q.device) < torch.tensor(held, device=q.device)[:, None]  # [H, P]
    if not pages:
        return q.new_zeros(heads, 0)
    products = q @ vectors.transpose(1, 2)  # [H, G, P * B], or [H, G, C]
    if rule.weigh == "product" and rule.marks == "codes":
        assert marks is not None
        best = products.amax(1).gather(1, marks.flatten(1).long())
        return best.view(heads, pages, per_page).amax(-1).masked_fill(~there, 0)
    if rule.weigh == "product":
        return products.view(heads, group, pages, per_page).amax((1, 3)).masked_fill(~there, 0)
    if rule.marks != "codes":
        products = products.masked_fill(~there.repeat_interleave(per_page, 1)[:, None], -torch.inf)
    shares = (products - products.amax(-1, keepdim=True).clamp(min=-3e38)) * scale
    shares = shares.exp()
    if rule.weigh == "softmax":
        shares = shares / shares.sum(-1, keepdim=True)
    worth = shares.sum(1) if rule.sum_heads else shares.amax(1)
    if rule.marks == "codes":
        assert marks is not None
        worth = worth.double().gather(1, marks.flatten(1).long())  # pages of the same codes are worth the same
    scores = worth.view(heads, pages, per_page).sum(-1).float().masked_fill(~there, 0)
    if outliers:
        assert marks is not None
        least = marks[..., -1].float().amin(-1).masked_fill(~there, torch.inf)
        odd = least.sort(dim=1, stable=True).indices[:, :outliers]
        scores = scores.scatter_add(1, odd, scores.new_full(odd.shape, 2.0)).masked_fill(~there, 0)
    return scores


def _rounded(q: Tensor) -> Tensor:
    """Queries [H, G, W] to 127ths of each head's largest number, in the kernels' order of operations: numbers half way
    between two codes must go the same way.
    """
    top = q.abs().amax(-1, keepdim=True)
    return (q * torch.where(top > 0, 127 / top, 0.0)).round() * (top * (1 / 127))


def _prepared(
    queries: Tensor, rule: PageRule, given: Tensor | None, turn: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Queries [H, G, W], and the channels [H, W] that they are of where not all are."""
    if rule.query == "split":
        return torch.cat([queries.clamp(min=0), queries.clamp(max=0)], -1), None
    if rule.query == "project":
        assert given is not None
        return queries @ unscaled(given), None
    if rule.query == "turn":
        assert turn is not None
        cos, sin = turn.chunk(2)
        a, b = queries.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1), None
    if rule.query == "thin":
        size = queries.abs()
        order = size.sum(1).sort(dim=-1, descending=True, stable=True).indices
        best = order[:, : rule.rank].sort(dim=-1).values  # [H, rank]
        few = queries.gather(-1, best[:, None].expand(-1, queries.shape[1], -1))
        covered = (few.abs().sum(-1, keepdim=True) / size.sum(-1, keepdim=True).clamp(min=1e-9)).sqrt()
        return torch.where(covered > 0, _rounded(few) / covered, 0.0), best
    return queries, None


_OP = Op("page_scores", reference)
TOLERANCE = {torch.float32: (2e-5, 2e-5)}


def _case(
    make: Make,
    rule: PageRule,
    pages: int,
    heads: int = 2,
    group: int = 7,
    dim: int = 32,
    size: int = 16,
    held: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    outliers: int = 0,
    parts: int = 1,
) -> dict[str, object]:
    queries = make.normal(heads, group, dim).bfloat16().float()  # as a bfloat16 model's, which keys in bfloat16 meet
    width = {"split": 2 * dim, "project": 12}.get(rule.query, dim)
    found: dict[str, object] = {"queries": queries, "rule": rule, "marks": None, "held": list(held or [pages] * heads)}
    if rule.marks == "rows":
        found["marks"] = make.normal(heads, pages + 3, parts, width + bool(outliers))[:, :pages]
    elif rule.marks == "halves":
        found["marks"] = make.normal(heads, pages + 3, parts, width + bool(outliers)).bfloat16()[:, :pages]
    elif rule.marks == "columns":
        found["marks"] = by_channel(heads, pages + 3, width + 2, size // 2)[:, :pages]
        found["marks"].copy_(in_columns(make.normal(heads, pages, size, width)))  # type: ignore[attr-defined]
    elif rule.marks == "bytes":
        found["marks"] = in_bytes(make.normal(heads, pages + 3, size, width))[:, :pages]
    elif rule.marks == "codes":
        found["marks"] = make.permutation(heads * pages * size).remainder(9).to(torch.int16).view(heads, pages, size)
        found["given"] = make.normal(heads, 9, width)
    else:
        layout = PageLayout(size, dim, dim, dtype)
        ids = make.permutation(heads * pages + 2)[: heads * pages].view(heads, pages)
        found["keys"] = KeyPages(make.pages(heads * pages + 2, layout), layout, ids.contiguous())
    if rule.query == "project":
        found["given"] = in_128ths(make.normal(heads, dim, width))
    if rule.query == "turn":
        angles = make.normal(dim // 2)
        found["turn"] = torch.cat([angles.cos(), angles.sin()])
    return found | {"outliers": outliers, "scale": 0.3}


def _cases() -> list[dict[str, object]]:
    best, voted = {"weigh": "product"}, {"weigh": "softmax", "sum_heads": True}
    box, part = PageRule("rows", "split", **best), PageRule("bytes", "project", **best)  # type: ignore[arg-type]
    return [
        {"rule": box, "pages": 9},
        {"rule": box, "pages": 5, "heads": 3, "group": 9, "dim": 13, "parts": 4, "held": (5, 0, 2)},
        {"rule": box, "pages": 0},
        {"rule": PageRule("halves", "split", **best), "pages": 9},  # type: ignore[arg-type]
        {"rule": PageRule("halves", **voted), "pages": 7, "dim": 13, "parts": 3, "held": (7, 2)},  # type: ignore[arg-type]
        {"rule": part, "pages": 21},
        {"rule": part, "pages": 6, "group": 16, "size": 8, "held": (6, 1)},
        {"rule": PageRule("bytes", "turn", **best), "pages": 7, "size": 32},  # type: ignore[arg-type]
        {"rule": PageRule("bytes", **voted), "pages": 3, "held": (3, 0)},  # type: ignore[arg-type]
        {"rule": PageRule("columns", weigh="peak"), "pages": 12},
        {"rule": PageRule("columns", weigh="softmax"), "pages": 11, "size": 24, "dim": 13, "held": (11, 4)},
        {"rule": PageRule("columns", "thin", rank=7, **voted), "pages": 5, "size": 32, "group": 9},  # type: ignore[arg-type]
        {"rule": PageRule("columns", "thin", rank=6, **voted), "pages": 3, "size": 128, "group": 2},  # type: ignore[arg-type]
        {"rule": PageRule("columns", "thin", rank=16, **voted), "pages": 70, "dim": 64},  # type: ignore[arg-type]
        {"rule": PageRule("columns", "thin", rank=5, **voted), "pages": 7},  # type: ignore[arg-type]
        {"rule": PageRule("columns", "thin", rank=90, **voted), "pages": 3, "size": 8, "held": (2, 3)},  # type: ignore[arg-type]
        {"rule": PageRule("rows", weigh="softmax"), "pages": 37, "outliers": 3, "held": (37, 20)},
        {"rule": PageRule("halves", weigh="softmax"), "pages": 37, "parts": 2, "outliers": 3, "held": (37, 20)},
        {"rule": PageRule("rows", weigh="peak"), "pages": 9, "parts": 4, "dim": 13, "outliers": 4, "held": (9, 2)},
        {"rule": PageRule("rows", weigh="softmax", sum_heads=True), "pages": 5, "group": 1},
        {"rule": PageRule("codes", weigh="peak"), "pages": 6, "held": (6, 2)},
        {"rule": PageRule("codes", "turn", "peak"), "pages": 3, "size": 8, "group": 9},
        {"rule": PageRule("codes", **best), "pages": 6, "group": 9, "held": (6, 2)},  # type: ignore[arg-type]
        {"rule": PageRule("keys", **voted), "pages": 37, "held": (37, 16)},  # type: ignore[arg-type]
        {"rule": PageRule("columns", "thin", rank=9, **voted), "pages": 40, "held": (33, 40)},  # type: ignore[arg-type]
        {"rule": PageRule("bytes", weigh="peak", sum_heads=True), "pages": 18},
        {"rule": PageRule("bytes", "turn", **best), "pages": 7, "size": 32, "held": (7, 0)},  # type: ignore[arg-type]
        {"rule": PageRule("bytes", **best), "pages": 6, "group": 16, "size": 8, "dim": 13, "held": (6, 1)},  # type: ignore[arg-type]
        {"rule": PageRule("bytes", **voted), "pages": 37, "group": 3, "held": (37, 17)},  # type: ignore[arg-type]
        {"rule": PageRule("bytes", **voted), "pages": 5, "size": 4, "dim": 64},  # type: ignore[arg-type]
        {"rule": PageRule("keys", **voted), "pages": 7},  # type: ignore[arg-type]
        {"rule": PageRule("keys", **voted), "pages": 5, "group": 10, "size": 32, "held": (1, 5)},  # type: ignore[arg-type]
        {"rule": PageRule("keys", **voted), "pages": 5, "dim": 20, "size": 8, "dtype": torch.float32},  # type: ignore[arg-type]
        {"rule": PageRule("keys", weigh="softmax"), "pages": 4, "dtype": torch.float16},
    ]


CASES = cross("pages", _case, *_cases())
