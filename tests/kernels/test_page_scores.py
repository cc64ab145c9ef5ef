"""Scores of pages: what the rules promise."""

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops.page_scores import (
    KeyPages,
    PageRule,
    corners,
    in_128ths,
    in_bytes,
    in_columns,
    out_of_columns,
    page_scores,
    reference,
    unscaled,
)

from .isas import ISAS, cpu

_cpu = pytest.importorskip("pagoda.kernels._extension", exc_type=ImportError)._cpu


@pytest.mark.parametrize("run", [reference, cpu.page_scores])
def test_no_key_in_a_box_is_above_its_bound(run):
    make = Make()
    keys, queries, rule = make.normal(2, 5, 3, 4, 16), make.normal(2, 7, 16), PageRule("rows", "split")
    boxes = torch.cat([keys.amax(3), keys.amin(3)], -1)
    products = (queries @ keys.flatten(1, 3).transpose(1, 2)).amax(1).view(2, 5, 12).amax(-1)
    assert (run(queries, rule, boxes, [5, 5]) >= products - 1e-5).all()
    halves = run(queries, PageRule("halves", "split"), corners(keys), [5, 5])
    assert (halves >= products - 1e-5).all()
    assert (halves - run(queries, rule, boxes, [5, 5]) < 0.01 * queries.abs().sum(-1).max() * keys.abs().max()).all()
    one = torch.cat([keys[..., :1, :].amax(3), keys[..., :1, :].amin(3)], -1)  # a box around one key is the key
    exact = (queries @ keys[..., 0, :].flatten(1, 2).transpose(1, 2)).amax(1).view(2, 5, 3).amax(-1)
    torch.testing.assert_close(run(queries, rule, one, [5, 5]), exact)


@pytest.mark.parametrize("run", [reference, cpu.page_scores])
def test_what_marks_leave_out_changes_nothing(run):
    """All channels of a query are all of it, a key's own columns are the key, and a key that is a codeword is found."""
    make = Make()
    layout = PageLayout(8, 16, 16, torch.bfloat16)
    pages, ids = make.pages(12, layout), make.permutation(12)[:10].view(2, 5).contiguous()
    keys = layout.k(pages)[ids.long()]  # [H, P, 8, 16]
    queries = make.normal(2, 3, 16).bfloat16().float()
    products = queries @ keys.float().flatten(1, 2).transpose(1, 2) * 0.2
    voted = products.softmax(-1).sum(1).view(2, 5, 8).sum(-1)
    columns = in_columns(keys)
    given = keys.float().flatten(1, 2)
    codes = torch.arange(40, dtype=torch.int16).view(1, 5, 8).expand(2, 5, 8).contiguous()
    peak = (products - products.amax(-1, keepdim=True)).exp().amax(1).view(2, 5, 8).sum(-1)
    for rule, marks, aid, wanted in (
        (PageRule("keys", weigh="softmax", sum_heads=True), None, {"keys": KeyPages(pages, layout, ids)}, voted),
        (PageRule("codes", weigh="peak"), codes, {"given": given}, peak),
        (PageRule("codes"), codes, {"given": given}, products.amax(1).view(2, 5, 8).amax(-1) / 0.2),
    ):
        torch.testing.assert_close(run(queries, rule, marks, [5, 5], scale=0.2, **aid), wanted, rtol=1e-4, atol=1e-5)
    found = run(queries, PageRule("columns", "thin", "softmax", True, rank=16), columns, [5, 5], scale=0.2)
    torch.testing.assert_close(found, voted, rtol=0.3, atol=0.05)  # four bits', and a byte's of the queries
    assert not torch.equal(found, voted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pages", [5, 40])
def test_where_the_largest_product_lies_changes_no_share(isa, pages):
    """Neither beyond what the first slots say by more than a float holds, nor far below them."""
    keys = Make().normal(1, pages, 16, 32)
    for of_page in (0, 3, pages - 1):
        shifted = keys.clone()
        shifted[:, of_page, 7] += 100.0
        queries = Make().normal(1, 3, 32).abs()  # products of 100 * 25: shares of e^1000
        for scale in (1e-4, 0.1, 1.0):
            rule = PageRule("columns", "thin", "softmax", True, rank=16)
            marks = in_columns(shifted)
            wanted = reference(queries, rule, marks, [pages], scale=scale)
            found = cpu.page_scores(queries, rule, marks, [pages], scale=scale, isa=isa)
            torch.testing.assert_close(found, wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_columns_of_any_number_of_pages_are_scored_by_themselves(isa):
    """Two pages at a time or not: nothing of what lies behind the last one, of a head that is zero or of many heads."""
    make, rule = Make(), PageRule("columns", "thin", "softmax", True, rank=16)
    for pages in (1, 2, 3, 4, 5, 8, 9, 15, 26, 31, 32, 33):
        keys, queries = make.normal(2, pages + 4, 16, 64), make.normal(2, 11, 64).bfloat16().float()
        keys[:, pages:] *= 1000.0
        queries[:, 3], queries[1, 9] = 0.0, 0.0
        marks = in_columns(keys).transpose(1, 2).contiguous().transpose(1, 2)  # channel by channel
        held = [pages, max(1, pages - 1)]
        found = cpu.page_scores(queries, rule, marks, held, scale=0.2, isa=isa)
        wanted = reference(queries, rule, marks, held, scale=0.2)
        for head, count in enumerate(held):
            torch.testing.assert_close(found[head, :count], wanted[head, :count], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [8, 16, 48, 24])  # one group, or several of 16
def test_no_number_in_a_column_is_further_off_than_half_a_sixteenth(size):
    """Of its slot's scale, which is no more than an eighth above what the slot's largest number asks for."""
    numbers = Make().normal(2, 5, size, 33) * 10.0 ** torch.arange(size).remainder(8).sub(4)[:, None]
    numbers[0, 0, 0] = 0.0
    marks = in_columns(numbers)
    assert marks.dtype is torch.uint8
    assert marks.shape == (2, 5, 35, size // 2)
    found = out_of_columns(marks).transpose(2, 3)
    largest = numbers.abs().amax(-1, keepdim=True)
    assert ((found - numbers).abs() <= largest * 1.126 / 14 + 1e-6).all()
    assert not found[0, 0, 0].any()
    beyond = in_columns(torch.tensor([3e5, -3e5, 1.0]).expand(1, 1, size, 3))
    assert out_of_columns(beyond)[0, 0].mT.tolist() == [[26880.0, -26880.0, 0.0]] * size


def test_equal_outliers_go_by_their_order_and_a_missing_page_is_refused():
    rows = torch.zeros(1, 6, 2, 9)
    rows[..., -1] = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.9, 0.1], [0.9, 0.9], [0.1, 0.1], [0.1, 0.9]])
    for run in (reference, cpu.page_scores):
        for kind, marks in (("rows", rows), ("halves", rows.bfloat16()), ("rows", rows[:, :, :1].contiguous())):
            found = run(torch.ones(1, 2, 8), PageRule(kind, weigh="softmax"), marks, [6], outliers=3)
            assert (found[0] > 2).nonzero().flatten().tolist() == ([1, 2, 4] if marks.shape[2] == 2 else [1, 4, 5])
    layout = PageLayout(8, 16, 16, torch.float32)
    bad = KeyPages(torch.zeros(3, layout.page_elems), layout, torch.tensor([[0, 3]], dtype=torch.int32))
    with pytest.raises(IndexError, match="page 3 of 3"):
        cpu.page_scores(torch.ones(1, 2, 16), PageRule("keys", weigh="softmax"), None, [2], keys=bad)


@pytest.mark.parametrize(
    ("marks", "query", "weigh"),
    [
        ("keys", "plain", "product"),
        ("columns", "plain", "product"),
        ("rows", "thin", "softmax"),
        ("keys", "split", "peak"),
    ],
)
def test_a_rule_that_no_op_follows_is_refused(marks, query, weigh):
    with pytest.raises(ConfigError, match=f"{marks}"):
        PageRule(marks, query, weigh)


@pytest.mark.parametrize(
    ("rule", "marks"),
    [
        (PageRule("bytes", weigh="softmax"), torch.zeros(1, 3, 9, 16, dtype=torch.uint8)),
        (PageRule("rows"), torch.zeros(1, 3, 1, 9)),
    ],
    ids=["bytes", "product"],
)
def test_outliers_that_no_op_finds_are_refused(rule, marks):
    with pytest.raises(ConfigError, match="outliers=2 .* accepted: 0, or rows"):
        page_scores(torch.ones(1, 2, 8), rule, marks, [3], outliers=2)


@pytest.mark.parametrize("isa", ISAS)
def test_the_best_pages_are_those_of_a_stable_sort(isa):
    """Of equals the earlier, newest and (where asked) first of all; NaN, infinities and minus zero are in order."""
    make = Make()
    for count in (1, 2, 7, 16, 17, 37, 63, 64, 65, 512):
        for spread in (0.4, 1000.0):  # many equals, and none
            scores = (make.normal(count) * spread).round() + 0.0
            scores[make.permutation(count)[: count // 7]] = -torch.inf
            scores[make.permutation(count)[: count // 9]] = torch.nan
            scores[make.permutation(count)[: count // 9]] = -0.0
            for keep in {1, 2, (count + 3) // 4, count} & set(range(1, count + 1)):
                for first in (False, True):
                    plain = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
                    plain[0] = torch.inf if first else plain[0]
                    plain[-1] = torch.inf
                    order = sorted(
                        range(count), key=lambda i: (i != count - 1 and not (first and i == 0), -float(plain[i]), i)
                    )
                    out = torch.zeros(keep, dtype=torch.int32)
                    _cpu.best_pages(scores.data_ptr(), count, keep, first, out.data_ptr(), isa)
                    assert out.tolist() == sorted(order[:keep])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "size", "group"), [(64, 16, 7), (13, 8, 9), (20, 32, 1)])
def test_bytes_are_the_same_on_every_instruction_set(isa, dim, size, group):
    """Sums of bytes are exact; and what rounding keys and queries loses is less than a hundredth of the products."""
    make = Make()
    keys, queries, rule = make.normal(2, 9, size, dim), make.normal(2, group, dim), PageRule("bytes")
    found = cpu.page_scores(queries, rule, in_bytes(keys), [9, 5], isa=isa)
    assert torch.equal(found, cpu.page_scores(queries, rule, in_bytes(keys), [9, 5], isa="base"))
    exact = (queries @ keys.flatten(1, 2).transpose(1, 2)).view(2, group, 9, size).amax((1, 3))
    there = torch.arange(9) < torch.tensor([9, 5])[:, None]
    assert ((found - exact).abs()[there] < 0.01 * queries.norm(dim=-1).max() * keys.norm(dim=-1).max()).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_channel_that_is_no_number_is_none_beside_bytes(isa):
    """Its code is 0: a sum of what its bits stood for ran over, and moved the scores of all pages."""
    make = Make()
    marks, queries, rule = in_bytes(make.normal(2, 5, 16, 32)), make.normal(2, 3, 32), PageRule("bytes")
    queries[:, 1, 4:9] = torch.nan
    found = cpu.page_scores(queries, rule, marks, [5, 4], isa=isa)
    assert torch.equal(found, cpu.page_scores(queries.nan_to_num(0.0), rule, marks, [5, 4], isa=isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "group", "rank"), [(64, 2, 16), (13, 9, 5), (80, 3, 80), (128, 1, 200)])
def test_queries_are_prepared_as_the_definition_says(isa, dim, group, rank):
    """Projected, split, or thinned out (of equal channels the earlier), whatever the registers."""
    make = Make()
    queries, keys = make.normal(2, group, dim), make.normal(2, 9, 8, dim)
    queries[:, :, 1::3] = queries[:, :, :1]  # equal channels
    columns = in_columns(keys)
    width = rank + -rank % 4
    basis = in_128ths(make.normal(2, dim, width))
    for rule, marks, aid in (
        (PageRule("columns", "thin", "softmax", True, rank=rank), columns, {}),
        (PageRule("bytes", "project"), in_bytes(keys @ unscaled(basis)[:, None]), {"given": basis}),
        (PageRule("halves", "split"), corners(keys)[:, :, None], {}),
    ):
        found, wanted = (
            run(queries, rule, marks, [9, 5], scale=0.1, **aid, **where)
            for run, where in ((cpu.page_scores, {"isa": isa}), (reference, {}))
        )
        there = torch.arange(9) < torch.tensor([9, 5])[:, None]
        torch.testing.assert_close(found[there], wanted[there], rtol=1e-2, atol=1e-2)
