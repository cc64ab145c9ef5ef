"""Page scores by boxes: every instruction set, and that they bound what they should."""

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops.box_scores import CASES, TOLERANCE, reference

from .isas import ISAS, cpu


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_instruction_set(case, isa):
    arguments = case.make(Make())
    rtol, atol = TOLERANCE[torch.float32]
    got = cpu.box_scores(**arguments, isa=isa)
    torch.testing.assert_close(got, reference(**arguments), rtol=rtol, atol=atol)


def test_no_key_in_a_box_is_above_its_bound():
    make = Make()
    keys, queries = make.normal(2, 5, 3, 4, 16), make.normal(2, 7, 16)
    boxes = torch.cat([keys.amax(3), keys.amin(3)], -1)
    products = (queries @ keys.flatten(1, 3).transpose(1, 2)).amax(1).view(2, 5, 12).amax(-1)
    bounds = reference(queries, boxes)
    assert (bounds >= products - 1e-5).all()
    one = torch.cat([keys[..., :1, :].amax(3), keys[..., :1, :].amin(3)], -1)  # a box around one key is the key
    exact = (queries @ keys[..., 0, :].flatten(1, 2).transpose(1, 2)).amax(1).view(2, 5, 3).amax(-1)
    torch.testing.assert_close(reference(queries, one), exact)
