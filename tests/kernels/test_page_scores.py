"""Scores of pages: what the rules promise."""

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops.page_scores import KeyPages, PageRule, in_pairs, reference

from .isas import cpu


@pytest.mark.parametrize("run", [reference, cpu.page_scores])
def test_no_key_in_a_box_is_above_its_bound(run):
    make = Make()
    keys, queries, rule = make.normal(2, 5, 3, 4, 16), make.normal(2, 7, 16), PageRule("rows", "split")
    boxes = torch.cat([keys.amax(3), keys.amin(3)], -1)
    products = (queries @ keys.flatten(1, 3).transpose(1, 2)).amax(1).view(2, 5, 12).amax(-1)
    assert (run(queries, rule, boxes, [5, 5]) >= products - 1e-5).all()
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
    columns = keys.transpose(2, 3).contiguous()
    given = keys.float().flatten(1, 2)
    codes = torch.arange(40, dtype=torch.int16).view(1, 5, 8).expand(2, 5, 8).contiguous()
    peak = (products - products.amax(-1, keepdim=True)).exp().amax(1).view(2, 5, 8).sum(-1)
    for rule, marks, aid, wanted in (
        (PageRule("keys", weigh="softmax", sum_heads=True), None, {"keys": KeyPages(pages, layout, ids)}, voted),
        (PageRule("columns", "thin", "softmax", True, rank=16), columns, {}, voted),
        (PageRule("pairs"), in_pairs(keys), {}, products.amax(1).view(2, 5, 8).amax(-1) / 0.2),
        (PageRule("columns"), columns, {}, products.amax(1).view(2, 5, 8).amax(-1) / 0.2),
        (PageRule("codes", weigh="peak"), codes, {"given": given}, peak),
    ):
        torch.testing.assert_close(run(queries, rule, marks, [5, 5], scale=0.2, **aid), wanted, rtol=1e-4, atol=1e-5)


def test_equal_outliers_go_by_their_order_and_a_missing_page_is_refused():
    rows = torch.zeros(1, 6, 1, 9)
    rows[..., -1] = torch.tensor([0.5, 0.1, 0.1, 0.9, 0.1, 0.1])[:, None]
    for run in (reference, cpu.page_scores):
        found = run(torch.ones(1, 2, 8), PageRule("rows", weigh="softmax"), rows, [6], outliers=3)
        assert (found[0] > 2).tolist() == [False, True, True, False, True, False]
    layout = PageLayout(8, 16, 16, torch.float32)
    bad = KeyPages(torch.zeros(3, layout.page_elems), layout, torch.tensor([[0, 3]], dtype=torch.int32))
    with pytest.raises(IndexError, match="page 3 of 3"):
        cpu.page_scores(torch.ones(1, 2, 16), PageRule("keys", weigh="softmax"), None, [2], keys=bad)


@pytest.mark.parametrize(
    ("marks", "query", "weigh"), [("keys", "plain", "product"), ("rows", "thin", "softmax"), ("keys", "split", "peak")]
)
def test_a_rule_that_no_op_follows_is_refused(marks, query, weigh):
    with pytest.raises(ConfigError, match=f"{marks}"):
        PageRule(marks, query, weigh)
