"""The C++ bodies of linear layers: every instruction set of this machine, batch mates, views."""

import pytest
import torch

from pagoda.kernels.case import Make

from .isas import ISAS, cpu


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("inputs", "outputs"), [(896, 50), (70, 33), (3, 1), (64, 700)])
def test_linear_of_every_instruction_set(isa, inputs, outputs):
    """Within one rounding of the exact product, and a token's bits are its own whoever shares the call."""
    make = Make(torch.bfloat16)
    x, weight, bias = make.normal(8, inputs), make.normal(outputs, inputs, scale=inputs**-0.5), make.normal(outputs)
    together = cpu.linear(x, weight, bias, isa=isa)
    exact = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(together.double(), exact, rtol=2**-8, atol=1e-4)
    for tokens in range(1, 8):
        assert torch.equal(cpu.linear(x[:tokens], weight, bias, isa=isa), together[:tokens])
    assert torch.equal(cpu.linear(x[7], weight, bias, isa=isa), together[7])


def test_linear_takes_views():
    make = Make(torch.bfloat16)
    x, wide = make.normal(2, 64), make.normal(96, 128)
    weight = wide[10:40, 32:96]  # rows apart, columns together
    assert torch.equal(cpu.linear(x, weight), cpu.linear(x, weight.contiguous()))
    torch.testing.assert_close(cpu.linear(x, wide[:64].mT[:, :]), x @ wide[:64], rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="more tokens"):
        cpu.linear(make.normal(9, 64), weight)
