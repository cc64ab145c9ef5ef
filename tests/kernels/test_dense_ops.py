"""Norms, rotary, activations, linear and experts against formulas written another way, or torch's own modules."""

import math

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.kernels.case import Make
from pagoda.kernels.ops import activation, gated_activation, layer_norm, linear, moe_dispatch, rms_norm, rotary

HALF = [torch.bfloat16, torch.float16]
make = Make()


def test_rms_norm_is_torchs():
    x, weight = make.normal(7, 65), make.normal(65)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (65,), weight, 1e-6))
    torch.testing.assert_close(rms_norm(x, None, 1e-6), torch.nn.functional.rms_norm(x, (65,), None, 1e-6))


@pytest.mark.parametrize("dtype", HALF)
def test_rms_norm_rounds_where_the_family_does(dtype):
    """Bit for bit: llama before the weight, olmo2 after it, gemma after (1 + weight) in float32."""
    x, weight = make.normal(50, 64).to(dtype), make.normal(64).to(dtype)
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    llama, olmo, gemma = weight * wide.to(dtype), (weight * wide).to(dtype), (wide * (1.0 + weight.float())).to(dtype)
    assert torch.equal(rms_norm(x, weight, 1e-6), llama)
    assert torch.equal(rms_norm(x, weight, 1e-6, fp32_weight=True), olmo)
    assert torch.equal(rms_norm(x, weight, 1e-6, offset=1.0), gemma)
    assert not torch.equal(llama, olmo)


def test_layer_norm_formula():
    x, weight, bias = make.normal(3, 33), make.normal(33), make.normal(33, scale=0.1)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 4])
def test_rotary_is_a_complex_product(interleaved, rotary_dim):
    q, k = make.normal(5, 3, 8), make.normal(5, 1, 8)
    turned = rotary_dim or 8
    angles = make.normal(5, turned // 2, scale=3)
    for x, got in zip(
        (q, k), rotary(q, k, angles.cos(), angles.sin(), interleaved=interleaved, rotary_dim=rotary_dim), strict=True
    ):
        head, rest = x[..., :turned].double(), x[..., turned:]
        pairs = head.unflatten(-1, (-1, 2)) if interleaved else head.unflatten(-1, (2, -1)).mT
        spun = torch.view_as_complex(pairs.contiguous()) * torch.polar(
            torch.ones(5, 1, 1).double(), angles.double()[:, None]
        )
        back = torch.view_as_real(spun)
        expected = (back if interleaved else back.mT).flatten(-2)
        torch.testing.assert_close(got[..., :turned].double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(got[..., turned:], rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_rounds_as_llama(dtype):
    """Bit for bit ``q * cos + rotate_half(q) * sin`` in the model's dtype."""
    q, k, angles = make.normal(5, 4, 16).to(dtype), make.normal(5, 2, 16).to(dtype), make.normal(5, 8, scale=3)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def llama(x):
        rotated = torch.cat((-x[..., 8:], x[..., :8]), dim=-1)
        return x * torch.cat((cos, cos), -1)[:, None] + rotated * torch.cat((sin, sin), -1)[:, None]

    got_q, got_k = rotary(q, k, cos, sin)
    assert torch.equal(got_q, llama(q))
    assert torch.equal(got_k, llama(k))


def test_rotary_refuses_angles_that_do_not_fit():
    with pytest.raises(ConfigError, match="rotary_dim 6 with 4 angles"):
        rotary(make.normal(1, 1, 8), make.normal(1, 1, 8), make.normal(1, 4), make.normal(1, 4), rotary_dim=6)


FORMULAS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_activation_formula(kind):
    x, up = torch.linspace(-9, 9, 41), torch.linspace(4, -4, 41)
    expected = torch.tensor([FORMULAS[kind](v) for v in x.tolist()])
    torch.testing.assert_close(activation(x, kind), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gated_activation(x, up, kind), expected * up, rtol=1e-5, atol=1e-6)


def test_swiglu_oai_clamps():
    gate, up = torch.tensor([-20.0, -1.0, 3.0, 20.0]), torch.tensor([9.0, 0.5, -2.0, -9.0])
    expected = [
        g / (1 + math.exp(-1.702 * g)) * (u + 1) for g, u in [(-20, 7), (-1, 0.5), (3, -2), (7, -7)]
    ]  # gate only from above, up from both sides
    torch.testing.assert_close(gated_activation(gate, up, "swiglu_oai"), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_unknown_kinds_are_listed():
    with pytest.raises(ConfigError, match="unknown activation 'swish'; accepted: gelu"):
        activation(make.normal(2), "swish")
    with pytest.raises(ConfigError, match="swiglu_oai"):
        gated_activation(make.normal(2), make.normal(2), "swish")
    with pytest.raises(ConfigError, match="unknown activation 'swiglu_oai'"):
        moe_dispatch(*experts(2, 3, 1, 4, 4), kind="swiglu_oai", gated=False)


def test_linear_formula():
    x, weight, bias = make.normal(3, 2, 9), make.normal(5, 9), make.normal(5)
    expected = (x.double()[..., None, :] * weight.double()).sum(-1) + bias.double()
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)


def experts(tokens, num_experts, top_k, dim, inner):
    weights, ids = make.normal(tokens, num_experts).softmax(-1).topk(top_k)
    return (
        make.normal(tokens, dim),
        ids,
        weights,
        make.normal(num_experts, 2 * inner, dim),
        make.normal(num_experts, dim, inner),
    )


def test_moe_one_token_at_a_time():
    x, ids, weights, gate_up, down = experts(9, 6, 3, 8, 5)
    expected = torch.zeros_like(x)
    for t in range(len(x)):
        for slot in range(3):
            e = int(ids[t, slot])
            gate, up = (gate_up[e] @ x[t])[:5], (gate_up[e] @ x[t])[5:]
            expected[t] += weights[t, slot] * (down[e] @ (gate * gate.sigmoid() * up))
    torch.testing.assert_close(moe_dispatch(x, ids, weights, gate_up, down), expected, rtol=1e-4, atol=1e-4)


def test_moe_as_gpt_oss_stores_it():
    """Transposed weights, gate and up alternating, biases, clamped swiglu: the formula of its experts."""
    x, ids, weights, gate_up, down = experts(4, 3, 2, 8, 5)
    gate_up_b, down_b = make.normal(3, 10), make.normal(3, 8)
    stored_gate_up, stored_down = gate_up.mT.contiguous(), down.mT.contiguous()  # [E, hidden, 2I], [E, I, hidden]
    expected = torch.zeros_like(x)
    for t in range(len(x)):
        for slot in range(2):
            e = int(ids[t, slot])
            inner = x[t] @ stored_gate_up[e] + gate_up_b[e]
            gate, up = inner[::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
            result = ((up + 1) * gate * torch.sigmoid(gate * 1.702)) @ stored_down[e] + down_b[e]
            expected[t] += weights[t, slot] * result
    got = moe_dispatch(
        x, ids, weights, stored_gate_up.mT, stored_down.mT,
        kind="swiglu_oai", interleaved=True, gate_up_b=gate_up_b, down_b=down_b,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_moe_ungated():
    x, ids, weights, up, down = experts(4, 3, 2, 8, 5)
    up = up[:, :5]
    chosen = torch.einsum("td,tkid->tki", x, up[ids]).relu().square()
    expected = torch.einsum("tki,tkdi,tk->td", chosen, down[ids], weights)
    got = moe_dispatch(x, ids, weights, up, down, kind="relu2", gated=False)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
