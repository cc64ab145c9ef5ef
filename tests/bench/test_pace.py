"""Paces of memory: told apart where there are two, and steps brought from one to another."""

from __future__ import annotations

from random import Random

import pytest

from pagoda.bench.machine import curve_at_pace
from pagoda.bench.pace import Pace, paces, usual
from pagoda.bench.step_fit import Sample
from pagoda.models.shape import ModelShape
from pagoda.plan.roofline import Roofline
from pagoda.plan.steps import AtPace
from pagoda.plan.work import Work
from pagoda.weights.quantization import in_panels
from tests.plan.public_shapes import config_of
from tests.plan.test_plans import MACHINE


def test_two_paces_are_told_from_one_that_varies() -> None:
    random = Random(1)
    slow = [40e9 * random.uniform(0.95, 1.05) for _ in range(12)]
    fast = [76e9 * random.uniform(0.95, 1.05) for _ in range(20)]
    assert paces(slow) == (pytest.approx(40e9, rel=0.05),)
    assert paces([*slow, *fast]) == (pytest.approx(40e9, rel=0.05), pytest.approx(76e9, rel=0.05))
    assert usual([*slow, *fast]) == pytest.approx(76e9, rel=0.05)
    assert usual([*slow, *fast[:5]]) == pytest.approx(40e9, rel=0.05)
    assert paces([*fast, 20e9]) == (pytest.approx(76e9, rel=0.05),), "one look is no pace"


def test_a_look_reads_memory() -> None:
    pace = Pace(1 << 20)
    assert pace.look() == pace.seen[0] > 1e6


def test_steps_at_another_pace_differ_by_what_they_read() -> None:
    """Measured at one pace, brought to the other and asked for at the first again: the same seconds."""
    shape = ModelShape.from_config(config_of("Qwen2.5-0.5B"))
    roofline = Roofline(shape, "bfloat16", in_panels("bfloat16"), "auto", MACHINE)
    weights = shape.weight_bytes("bfloat16")
    assert roofline.read_bytes(1, 1, 1000.0) == pytest.approx(weights + 1000 * 12288, rel=0.01)
    work = Work(decodes=1, context=1000.0, rows=1)
    moved = roofline.read_bytes(1, 1, 1000.0) * (1 / 10e9 - 1 / 16e9)
    slow = AtPace(roofline, roofline, 10e9, 16e9)
    assert slow.seconds(work) == pytest.approx(roofline.seconds(work) + moved)
    sample = Sample(1, 1000.0, 0, 0.0, 1, slow.seconds(work), 10e9)
    assert sample.at(16e9, roofline).seconds == pytest.approx(roofline.seconds(work))
    computes = AtPace(roofline, roofline, 40e9, 80e9).seconds(work)  # longer than its reads at either
    assert computes == roofline.seconds(work) == sample._replace(seconds=computes, pace=40e9).at(80e9, roofline).seconds
    assert sample._replace(pace=0.0).at(16e9, roofline).seconds == sample.seconds, "nobody looked"


def test_products_are_brought_to_one_pace() -> None:
    ((_, seconds),) = curve_at_pace("int8", [(1, 2e-11, 40e9)], 80e9)
    assert seconds == pytest.approx(2e-11 - 1 / 80e9, rel=0.02)
