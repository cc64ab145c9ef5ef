"""Asked, reached and possible, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.peers.aims import AIMS, BEST, LIMIT, MILLISECONDS, UNDISTURBED, Verdict, holes, verdicts
from benchmarks.peers.limits import REGISTERS, limit, prompt_operations
from benchmarks.peers.reasons import REASONS
from benchmarks.peers.report import verdict_tables
from benchmarks.peers.shapes import SHAPES
from benchmarks.peers.summary import Figure, Summary

B1 = Figure(
    "qwen05b",
    "bf16",
    "b1",
    "decode",
    "pagoda",
    30.0,
    0.1,
    2,
    0.85,
    32.0,
    100.0,
    2000.0,
    1,
    None,
    "2026-01-01T10:00",
    "",
)


def figure(engine: str, rate: float, setting: str = "b1", metric: str = "decode", **fields: object) -> Figure:
    return replace(B1, engine=engine, median=rate, setting=setting, metric=metric, **fields)  # type: ignore[arg-type]


def found(*figures: Figure) -> dict[tuple[str, str], Verdict]:
    return {(v.aim.setting, v.aim.of): v for v in verdicts(figures, figures[0].shape)}


def test_of_all_peers_the_best_counts() -> None:
    told = found(
        figure("pagoda", 115, "b8"), figure("vllm", 80, "b8", ratio=1.4), figure("openvino", 100, "b8", ratio=1.148)
    )
    verdict = told["b8", BEST]
    assert (verdict.peer.engine, verdict.measured, verdict.met) == ("openvino", 1.148, True)  # as it is shown: 1.15
    assert not replace(verdict, measured=1.144).met


def test_pagoda_is_nobodys_peer_and_a_peer_of_another_hour_none_either() -> None:
    told = found(figure("pagoda", 27), figure("pagoda_kv8", 60), figure("vllm", 20, ratio=1.5), figure("openvino", 25))
    verdict = told["b1", BEST]
    assert (verdict.measured, verdict.peer.engine) == (1.5, "vllm")
    assert verdict.without == ("llamacpp", "openvino", "transformers")
    assert not told["b1", LIMIT].met  # 85 % of the bandwidth
    late = found(figure("pagoda", 30, at="2026-01-01T12:00"), figure("openvino", 25))["b1", BEST]
    assert (late.met, late.lacks) == (None, "measured 2026-01-01 12:00 and 2026-01-01 10:00")


def test_fewer_bits_without_loss_are_held_to_those_that_were_asked_for() -> None:
    told = found(figure("pagoda", 36, share=0.84))["b1", LIMIT]  # of 0.74 GB a step, at 32 GB/s
    assert told.met
    assert told.measured is not None
    assert 1.0 < told.measured < 1.2


def test_more_than_the_bandwidth_is_another_machines() -> None:
    assert found(figure("pagoda", 30, share=1.04))["b1", LIMIT].met
    odd = found(figure("pagoda", 30, share=1.38))["b1", LIMIT]
    assert odd.met is None
    assert "138 %" in odd.lacks


def test_the_shared_prefix_is_compared_with_vllm_alone() -> None:
    told = found(
        figure("pagoda", 30, "shared"), figure("openvino", 29, "shared"), figure("vllm", 10, "shared", ratio=3.0)
    )
    assert told["shared", "vllm"].measured == 3.0
    assert found(figure("pagoda", 30, "shared"))["shared", "vllm"].lacks == "no peer"


def test_int4_at_8k_is_judged_with_kv_in_8_bits() -> None:
    told = found(
        figure("pagoda", 50, "c8192", weights="int4"), figure("pagoda_kv8", 60, "c8192", weights="int4"),
        figure("openvino", 30, "c8192", weights="int4", ratio=1.7),  # of 16 bits
        figure("vllm", 10, "c8192", weights="int4", at="2026-01-02T10:00"),
    )  # fmt: skip
    assert told["c8192", BEST].measured == 2.0


@pytest.mark.parametrize(("read", "measured"), [(32.0, 0.7), (60.0, None)])
def test_beside_a_neighbour_only_the_same_machine_compares(read: float, measured: float | None) -> None:
    verdict = found(figure("pagoda", 30), figure("pagoda", 21, "neighbour", read_gb_s=read))["neighbour", UNDISTURBED]
    assert verdict.measured == measured
    assert verdict.met is (None if measured is None else True)
    assert ("32" in verdict.lacks and "60" in verdict.lacks) == (measured is None)


def test_a_small_models_step_has_a_longest_time() -> None:
    slow, fast = figure("pagoda", 1000, shape="stories15m"), figure("pagoda", 1112, shape="stories15m")
    assert not found(slow)["b1", MILLISECONDS].met
    assert found(fast)["b1", MILLISECONDS].met


def test_holes_are_the_cells_that_decide() -> None:
    figures = [figure("pagoda", 30), figure("vllm", 20, "c4096"), figure("vllm", 20, "c4096", "prefill")]
    rows = [("bf16", engine) for engine in ("pagoda", "pagoda_kv8", "vllm", "openvino")]
    missing = {engine: columns for _, engine, columns in holes(figures, "qwen05b", rows)}
    assert ("neighbour", "decode") in missing["pagoda"]
    assert ("b1", "decode") not in missing["pagoda"]
    assert ("shared", "decode") in missing["vllm"]
    assert ("c4096", "prefill") not in missing["vllm"]
    assert ("shared", "decode") not in missing["openvino"]
    assert "pagoda_kv8" not in missing  # of bf16 nothing is asked of it
    assert not any(("c4096", "decode") in columns for columns in missing.values())


def test_limits_by_hand() -> None:
    """The 0.5B shape on a Zen 4, as docs/linear-kernels.md has it: 552 tokens/s of a prompt of 4096, 461 of 8192."""
    linear, attention = prompt_operations(SHAPES["qwen05b"], 1, 4096)
    assert linear / 1e9 == pytest.approx(2810, rel=2e-3)
    assert attention / 1e9 == pytest.approx(692, rel=2e-3)
    for setting, rate in (("c4096", 552), ("c8192", 461)):
        most = limit("amd-epyc-25-17", figure("pagoda", 400, setting, "prefill"))
        assert (round(most.rate), most.bound) == (rate, "multiply")
    most = limit("amd-epyc-25-17", B1)
    assert most.bound == "read"
    assert most.rate == pytest.approx(32e9 / (2 * 493_961_216 + 160 * 12288))
    half = limit("amd-epyc-25-17", figure("pagoda_kv8", 30))
    assert half.rate == pytest.approx(32e9 / (2 * 493_961_216 + 160 * 6144))
    assert limit("a machine of which nobody knows", B1) is None


def test_the_table_says_what_is_short_and_why() -> None:
    machine = {"cpu": "AMD EPYC", "cpu_family_model": "25/17", "cores": 2, "memory_gib": 8, "flags": ["avx512_bf16"]}
    figures = [figure("pagoda", 461, "c4096", "prefill"), figure("openvino", 409, "c4096", "prefill", ratio=1.12)]
    text = verdict_tables([Summary(machine, "2026-01-01", "2026-01-01", {}, figures, {})])
    row = next(line for line in text.splitlines() if "prefill 4096" in line)
    assert row.startswith(
        "| 0.5B, bf16 | prefill 4096 | 1.20 | 1.12 of openvino | 461 | 552, multiply | 84 % | 1.35 | **short**"
    )
    assert REASONS["amd-epyc-25-17", "qwen05b", "bf16", "c4096", "prefill", BEST].text in row


def test_reasons_belong_to_aims() -> None:
    asked = {(shape, a.weights, a.setting, a.metric, a.of) for a in AIMS for shape in a.shapes}
    assert {key[1:] for key in REASONS} <= asked
    assert {key[0] for key in REASONS} <= set(REGISTERS)
