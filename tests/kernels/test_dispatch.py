"""The chooser: declared features against needs, reasons, and what a call costs."""

import timeit

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.kernels import dispatch
from pagoda.kernels.dispatch import Features, Needs, Op


@pytest.fixture
def op(monkeypatch):
    dispatch.available()  # what the package has registers where it belongs, not here
    monkeypatch.setattr(dispatch, "OPS", {})
    return Op("double", lambda x: x + x)


FAST = Features(
    devices=frozenset({"cpu"}), dtypes=frozenset({torch.float32, torch.bfloat16}), options=frozenset({"window"}),
    max_dim=128, same_dtype=True, multiple_of=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(dtypes=(torch.bfloat16,), dims=(64, 128), options=frozenset({"window"})), None),
        (Needs(device="cuda"), "device cuda (has cpu)"),
        (Needs(dtypes=(torch.float16,)), "dtype torch.float16"),
        (Needs(dtypes=(torch.float32, torch.bfloat16)), "mixed dtypes torch.float32, torch.bfloat16"),
        (Needs(options=frozenset({"window", "alibi"})), "option alibi"),
        (Needs(dims=(64, 256)), "dimension 256 (at most 128)"),
        (Needs(dims=(24,)), "dimension 24 (multiples of 16)"),
    ],
)
def test_why_not(needs, reason):
    assert FAST.why_not(needs) == reason


def test_best_able_implementation_is_chosen(op):
    dispatch.register("double", "fast", lambda x: 2 * x, FAST)
    able, unable = Needs(dims=(16,)), Needs(dims=(17,))
    assert op.choose(able).name == "fast"
    assert op.choose(unable).name == "reference"
    assert dispatch.explain("double", able) == {"fast": "chosen", "reference": "able"}
    assert dispatch.explain("double", unable) == {"fast": "dimension 17 (multiples of 16)", "reference": "chosen"}


def test_choice_is_remembered_until_something_registers(op):
    needs = Needs()
    assert op.resolve("key", needs) is op.reference
    assert op.chosen == {"key": op.reference}
    dispatch.register("double", "fast", fast := (lambda x: 2 * x), FAST)
    assert op.chosen == {}
    assert op.resolve("key", needs) is fast


def test_environment_restricts_the_choice(op, monkeypatch):
    dispatch.register("double", "fast", lambda x: 2 * x, FAST)
    monkeypatch.setenv(dispatch.ENV, "reference")
    assert op.choose(Needs()).name == "reference"
    monkeypatch.setenv(dispatch.ENV, "fast")
    assert op.choose(Needs()).name == "fast"
    assert op.choose(Needs(device="cuda")).name == "reference", "what it cannot do still runs"


def test_a_restriction_to_what_nobody_is_called_is_refused(op, monkeypatch):
    monkeypatch.setenv(dispatch.ENV, "bogus")
    with pytest.raises(ConfigError, match="unknown PAGODA_KERNELS 'bogus'; accepted: cpu, reference; leave it unset"):
        op.choose(Needs())
    monkeypatch.setenv(dispatch.ENV, "cpu")
    assert op.choose(Needs()).name == "reference", "an implementation that another op has, or that was not built"


def test_unknown_op_is_refused(op):
    with pytest.raises(ConfigError, match="unknown op 'triple'; accepted: double"):
        dispatch.explain("triple", Needs())
    with pytest.raises(ConfigError, match="unknown op 'triple'"):
        dispatch.register("triple", "fast", abs, FAST)


def test_missing_provider_leaves_its_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "PROVIDERS", ("nowhere",))
    monkeypatch.setattr(dispatch, "_providers", {})
    assert "pagoda.kernels.nowhere" in dispatch.available().missing["nowhere"]
    assert dispatch.available().ops["paged_attention"][-1] == "reference"


def test_a_call_adds_little():
    """Key, look-up and call of a chosen implementation: 0.5 us alone on the machine; the bound leaves room for load."""
    from pagoda.kernels.ops import activation

    x = torch.zeros(1)
    activation(x, "relu")
    key = (x.dtype, x.device.type, "relu")
    op = dispatch.OPS["activation"]
    best = min(timeit.repeat(lambda: op.chosen.get((x.dtype, x.device.type, "relu")), number=1000, repeat=5)) / 1000
    assert key in op.chosen
    assert best < 5e-6
