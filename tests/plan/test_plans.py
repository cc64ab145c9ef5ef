"""Plans: sums that agree with the engine's, a front that nobody beats, refusals that name what would do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pagoda.budget import MachineProbe
from pagoda.core.errors import BudgetError, ConfigError, UnsupportedModelError
from pagoda.core.units import GIB, MIB
from pagoda.models.shape import ModelShape
from pagoda.plan.demand import Demand
from pagoda.plan.kept import Kept
from pagoda.plan.machine import FarCosts, Machine, load_machine, save_machine
from pagoda.plan.plans import Planner, front
from pagoda.plan.prices import PolicyPrice, Prices, all_prices, nearest_prices
from pagoda.plan.roofline import Roofline
from pagoda.plan.streamed import Rooms, Streamed
from pagoda.plan.subject import Subject
from pagoda.plan.work import Work
from pagoda.weights.quantization import in_panels, parse_quantization
from tests.plan.public_shapes import SHAPES, config_of

PRICES = Prices(
    "lantern",
    "llama",
    3_000_000,
    {"int8": 0.001, "int4": 0.05},
    {"int8": 0.002},
    {"snapkv(budget=0.25)": PolicyPrice(0.02, 0.1)},
)
MACHINE = Machine(
    cpu="a test", threads=2, runtime_bytes=400 * MIB, read_bytes_per_second=20e9, disk_bytes_per_second=1e9,
    products={"bf16": ((1, 1e-10), (100, 1e-9)), "int8": ((1, 5e-11), (100, 1e-9)), "int4": ((1, 3e-11), (100, 1e-9))},
    attend={"auto": 1e-11, "int8": 1e-11}, attend_prompt=2e-12, step=1e-4, layer=1e-5, row=1e-5, measured=True,
)  # fmt: skip


def planner(name: str, budget: int, prices: Prices | None = PRICES, **demand: int | float) -> Planner:
    return Planner(Subject.of(name, config_of(name)), MACHINE, prices, Demand(**demand), budget)  # type: ignore[arg-type]


def test_accounts_are_what_the_engine_leases() -> None:
    """The same configuration built for real: every account but the runtime, which is the test's own process."""
    from pagoda import LLM
    from pagoda.models.catalog import folder_of, read_config

    subject = Subject.of("lantern", read_config("lantern"), folder=folder_of("lantern"))
    plans = Planner(subject, MACHINE, None, Demand(prompt=200, output=50), GIB).plans()
    flags = dict(zip(plans[0].flags[::2], plans[0].flags[1::2], strict=True))
    with LLM(
        "lantern",
        memory="3GiB",
        max_model_len=int(flags["--max-model-len"]),
        max_num_seqs=int(flags["--max-num-seqs"]),
        max_num_batched_tokens=int(flags["--max-num-batched-tokens"]),
    ) as llm:
        accounts = llm.stats()["memory"]["accounts"]
        planned = plans[0].accounts.as_dict()
        for name in ("weights", "activations", "staging", "grammars"):
            assert planned[name] == accounts[name]["leased_bytes"], name


def test_plans_fit_and_nobody_beats_another() -> None:
    plans = planner("Qwen2.5-0.5B", 2 * GIB, concurrency=16, prompt=4000).plans()
    assert all(plan.accounts.total <= 2 * GIB for plan in plans)
    assert [plan.loss for plan in plans] == sorted(plan.loss for plan in plans)
    assert plans[0].loss == 0.0
    assert front(plans) == plans
    assert any(plan.loss > 0 and plan.tokens_per_second > plans[0].tokens_per_second for plan in plans)


def test_a_policy_lets_more_requests_in() -> None:
    plans = planner("Llama-3.2-1B", 3700 * MIB, concurrency=32, prompt=8000).plans()
    exact = max(plan.running for plan in plans if plan.choice.kv == "exact" and plan.choice.kv_cache_dtype == "auto")
    assert max(plan.running for plan in plans if plan.choice.kv.startswith("snapkv")) > exact


def test_refusals_name_what_would_do() -> None:
    with pytest.raises(
        BudgetError, match=r"no plan fits Llama-3.1-70B .* nearest budget that can is (\d+)MiB"
    ) as error:
        planner("Llama-3.1-70B", 600 * MIB).plans()
    nearest = int(str(error.value).rpartition(" ")[2].removesuffix("MiB"))
    assert planner("Llama-3.1-70B", nearest * MIB).plans()
    with pytest.raises(BudgetError, match="keeps the asked times; the nearest"):
        planner("Qwen2.5-0.5B", 2 * GIB, slo_ttft=1e-6).plans()
    with pytest.raises(BudgetError, match="positions of gpt2 end at 1024"):
        planner("gpt2", 2 * GIB, prompt=1000, output=100)
    with pytest.raises(ConfigError, match="concurrency is 0"):
        Demand(concurrency=0)
    with pytest.raises(UnsupportedModelError, match="x: bloom runs through transformers"):
        Subject.of("x", {"model_type": "bloom"})
    with pytest.raises(UnsupportedModelError, match=r"packed already \(gptq\)"):
        Subject.of("x", config_of("gpt2") | {"quantization_config": {"quant_method": "gptq"}})


def test_times_that_are_kept() -> None:
    every = planner("Qwen2.5-0.5B", 2 * GIB, concurrency=4).plans()
    limit = min(plan.tpot for plan in every) * 1.01
    assert all(plan.tpot <= limit for plan in planner("Qwen2.5-0.5B", 2 * GIB, concurrency=4, slo_tpot=limit).plans())


def test_two_paces_of_memory_give_a_tokens_time_a_range() -> None:
    """Of a model that caches do not hold; the usual pace is what everything else is said of."""
    subject = Subject.of("Qwen2.5-0.5B", config_of("Qwen2.5-0.5B"))
    usual = MACHINE.read_bytes_per_second
    machine = replace(MACHINE, read_paces=(usual / 2, usual))
    (plan, *_) = Planner(subject, machine, None, Demand(100, 10), 4 * GIB).plans()
    slow, fast = plan.tpot_paces
    assert fast == plan.tpot
    assert slow == pytest.approx(plan.tpot + subject.shape.weight_bytes(subject.dtype) / usual, rel=0.01)
    held = replace(machine, cache_bytes=4 * GIB)
    (plan, *_) = Planner(subject, held, None, Demand(100, 10), 4 * GIB).plans()
    assert set(plan.tpot_paces) == {plan.tpot}


def test_windows_keep_what_they_reach_and_the_other_layers_lose_theirs() -> None:
    """Of gemma-2-2b every second layer has a window of 4096 tokens; what the engine would run is what is priced."""
    snapkv, quest, heads = "snapkv(budget=0.25)", "quest(pages=0.25)", "duo_attention"
    subject, demand = Subject.of("gemma-2-2b", config_of("gemma-2-2b")), Demand(8000, 192, 2)
    assert subject.runs([snapkv, quest, heads], 4096) == [snapkv, quest, heads], "no window ends"
    assert subject.runs([snapkv, quest, heads], 8192) == [snapkv, quest]
    fmt = subject.shape.kv_format(16, subject.dtype)
    kept = {kv: Kept.of(subject.policy(kv, 8192), fmt, demand) for kv in ("exact", snapkv, quest)}
    assert kept["exact"].held_blocks == 389, "half of 8192 slots, and of a window with 129 beside it"
    assert kept["exact"].peak_blocks == 8192 / 16, "where the prompt is computed at once"
    assert Kept.of(subject.policy("exact", 8192), fmt, demand, 512).peak_blocks == 404
    assert kept["exact"].read_slots == 8096, "of layers without a window; a step's model knows of the others"
    assert kept[snapkv].held_blocks == 201, "half of 2192 slots, and of a window"
    assert kept[snapkv].read_slots == (8096 + 2000 + 96) / 2
    assert kept[quest].held_blocks == kept["exact"].held_blocks
    assert kept[quest].read_slots == (8096 + 126 * 16) / 2, "a quarter of 506 pages"
    assert kept[quest].note_bytes * 2 == Kept.of(subject.policy(quest, 4096), fmt, demand).note_bytes
    plans = planner("gemma-2-2b", 16 * GIB, prompt=8000, output=192, concurrency=2).plans()
    assert {plan.choice.kv for plan in plans} == {"exact", snapkv}


def test_windows_let_a_plan_run_more_at_a_time(monkeypatch) -> None:
    """Of gemma-3-1b five of six layers have a window of 512 tokens."""
    ways = {"prompt": 8000, "output": 192, "concurrency": 200}

    def running() -> int:
        config = config_of("gemma-3-1b") | {"sliding_window": 512}
        subject = Subject.of("gemma-3-1b", config)
        plans = Planner(subject, MACHINE, None, Demand(**ways), 6 * GIB).plans()
        return max(plan.running for plan in plans if plan.choice.kv == "exact" and plan.choice.kv_cache_dtype == "auto")

    many = running()
    monkeypatch.setattr("pagoda.kv.policies._layers.Distances.reach", lambda *_: None)
    assert 200 > many >= 1.8 * running()


def test_windows_in_every_layer_leave_policies_out_where_they_end() -> None:
    config = config_of("Mistral-7B") | {"sliding_window": 4096}
    subject = Subject.of("mistral", config)
    assert subject.runs(["snapkv"], 4096) == ["snapkv"]
    assert subject.distances.why_not(4096) == ""
    assert subject.runs(["snapkv"], 4097) == []
    assert "its attention windows count slots (4096)" in subject.distances.why_not(4097)


def test_no_prices_no_losses() -> None:
    plans = planner("Qwen2.5-0.5B", 2 * GIB, prices=None).plans()
    assert {str(plan.choice).partition(", steps")[0] for plan in plans} == {"weights auto, KV auto, exact"}


def test_placements_spill_what_does_not_fit() -> None:
    placed = planner("Llama-3.1-8B", 8 * GIB).placements(100 * GIB)
    by_format = {one.choice.quantization: one.placement for one in placed if one.choice.kv_cache_dtype == "auto"}
    layers_on_disk = 32 * by_format["auto"].share("weights", "disk")
    assert 12 < layers_on_disk < 23
    assert layers_on_disk == pytest.approx(round(layers_on_disk))
    assert by_format["int4"].share("weights", "disk") == 0.0
    times = [one.seconds for one in placed]
    assert times == sorted(times, reverse=True), "what loses more is faster"
    long = planner("Qwen2.5-0.5B", 1760 * MIB, prompt=30000, prices=None).placements(10 * GIB)
    assert long[0].placement.share("kv", "disk") == 1.0, "371 MB; of weights ten layers would be read, 411 MB"
    assert long[0].runs_as.kv == "offload"
    share = by_format["int8"].share("weights", "disk")
    assert 0 < share < 0.2, "its 8 GB do not fit beside a step: packed for it, and read from there"


def test_products_of_a_format_are_measured_whatever_it_says_of_embeddings() -> None:
    shape, work = ModelShape.from_config(config_of("Llama-3.2-1B")), Work(decodes=1, context=1, rows=1)
    int8, same = (
        Roofline(shape, "bfloat16", parse_quantization(text), "auto", MACHINE).seconds(work)
        for text in ("int4", "int4(embed='same')")
    )
    head = next(matrix for matrix in shape.matrices if matrix.role == "embed")
    assert int8 - same == pytest.approx(head.rows * head.cols * 2e-11, rel=1e-3), "a head in int4 instead of int8"


def test_steps_take_longer_with_more_to_do() -> None:
    shape = ModelShape.from_config(config_of("Llama-3.2-1B"))
    roofline = Roofline(shape, "bfloat16", in_panels("bfloat16"), "auto", MACHINE)
    one = roofline.seconds(Work(decodes=1, context=100, rows=1))
    assert one < roofline.seconds(Work(decodes=1, context=10_000, rows=1)) < roofline.seconds(Work(chunk=1000))
    weights = sum(m.rows * m.cols for m in shape.matrices)
    by_hand = 1e-4 + 16e-5 + 1e-5 + weights * 1e-10 + 16 * 32 * 128 * 100 * 1e-11
    assert one == pytest.approx(by_hand)


def test_a_window_bounds_what_is_read() -> None:
    shape = ModelShape.from_config(config_of("Mistral-7B"))
    assert set(shape.windows) == {4096}
    roofline = Roofline(shape, "bfloat16", in_panels("bfloat16"), "auto", MACHINE)
    far = roofline.seconds(Work(decodes=1, context=20_000, rows=1))
    assert far == roofline.seconds(Work(decodes=1, context=4096, rows=1))


def test_a_mixture_reads_the_experts_that_are_chosen() -> None:
    shape = ModelShape.from_config(config_of("Mixtral-8x7B"))
    roofline = Roofline(shape, "bfloat16", parse_quantization("int8"), "auto", MACHINE)
    one, many = (roofline.seconds(Work(decodes=n, rows=n)) for n in (1, 64))
    weights = sum(m.rows * m.cols * m.count for m in shape.matrices)
    assert one < 0.35 * weights * 5e-11
    assert many > weights * 5e-11


@pytest.mark.parametrize(("built", "mib"), [("2.13.0+cpu", 280), ("2.13.0", 420)])
def test_a_guessed_runtime_goes_by_the_build_of_torch(monkeypatch: pytest.MonkeyPatch, built: str, mib: int) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: built)
    assert Machine.guess(MachineProbe()).runtime_bytes == mib * MIB


def test_the_machine_is_kept_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "machine.json"
    probe = MachineProbe()
    assert load_machine(file, probe)[1].startswith("guessed; run")
    mine = replace(MACHINE, cpu=probe.cpu_model(), threads=probe.cpus())
    save_machine(mine, file)
    assert load_machine(file, probe) == (mine, f"calibrated, {file}")
    old = json.loads(file.read_text())
    del old["far"]
    file.write_text(json.dumps(old))
    assert load_machine(file, probe)[0] == mine, "calibrated before a lower tier was: what it costs is a guess"
    for far in (FarCosts(layer=0.5), FarCosts(layer=0.0, group=0.0)):  # less than steps vary by, where it was measured
        save_machine(replace(mine, far=far), file)
        assert load_machine(file, probe)[0].far == far
    save_machine(replace(mine, far=FarCosts(copy=-1.0)), file)
    assert load_machine(file, probe)[0] != replace(mine, far=FarCosts(copy=-1.0))
    save_machine(replace(mine, threads=99), file)
    assert "another machine" in load_machine(file, probe)[1]
    file.write_text(file.read_text().replace('"disk_bytes_per_second": 1000000000.0', '"disk_bytes_per_second": -1'))
    assert "cannot be read" in load_machine(file, probe)[1]


def test_measured_prices_are_there_and_sane() -> None:
    found = all_prices()
    assert {"lantern", "stories260K", "bitnet-stories-3M"} == {prices.model for prices in found}
    for prices in found:
        assert prices.weights["int8"] < prices.weights["int4"]
        assert ("ternary" in prices.weights) == (prices.model == "bitnet-stories-3M")
        assert prices.kv_dtypes["int8"] < prices.kv_dtypes["int4"]
        assert prices.loss("auto", "auto", "exact") == 0.0
        assert prices.loss("unheard-of", "auto", "exact") is None
    names = {prices.model: prices.num_params for prices in found}
    for name, wanted in (
        ("x/bitnet-stories-3M", "bitnet-stories-3M"),
        ("lantern", "lantern"),
        ("stories260K", "stories260K"),
    ):
        family = "bitnet" if "bitnet" in name else "llama"
        nearest = nearest_prices(name, family, names[wanted])
        assert nearest is not None
        assert nearest.model == wanted
        assert nearest.are_of(name, names[wanted])
    large = nearest_prices("x", "qwen2", 7_000_000_000)  # though bitnet-stories-3M is the largest
    assert large is not None
    assert large.model == "lantern"
    assert not large.are_of("x", 7_000_000_000)
    assert nearest_prices("x", "llama", 1, known=()) is None


def test_every_public_shape_is_planned_without_torch() -> None:
    code = (
        "import sys; from tests.plan.test_plans import *\n"
        "for name in SHAPES:\n"
        "    length = min(1280, Subject.of(name, config_of(name)).shape.max_position)\n"
        "    assert planner(name, 4096 * GIB, prompt=length - 100, output=100, concurrency=4).plans()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    assert len(SHAPES) >= 30
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_does_not_fit_is_streamed_at_the_rate_of_the_disk() -> None:
    """A model of 2.5 GB in 1.2 GiB: the plan is the engine's, and a step takes what reading the rest takes."""
    subject = Subject.of("Llama-3.2-1B", config_of("Llama-3.2-1B"))
    if not subject.panels:
        pytest.skip("needs the order of the C++ kernels: AVX2")
    budget, demand = 1229 * MIB, Demand(prompt=200, output=50)
    (plan,) = Planner(subject, MACHINE, None, demand, budget).plans()
    whole = subject.shape.weight_bytes(subject.dtype, subject.quantization("auto"))
    assert plan.peak_bytes <= budget < whole
    assert 0 < plan.read_bytes < whole
    assert plan.accounts.weights + plan.read_bytes > whole  # the ring stands beside what is kept
    assert plan.tpot == pytest.approx(plan.read_bytes / MACHINE.disk_bytes_per_second)
    roomy = Planner(subject, MACHINE, None, demand, 4 * GIB).plans()
    assert all(plan.read_bytes == 0 and plan.accounts.weights == whole for plan in roomy)
    small = replace(subject, streams=False)
    with pytest.raises(BudgetError, match="the nearest budget that can is"):
        Planner(small, MACHINE, None, demand, budget).plans()


def test_fewer_bits_are_read_sooner() -> None:
    """Formats that the checkpoint does not have are streamed from a file that is packed for it; its bytes are said."""
    subject = Subject.of("Llama-3.1-8B", config_of("Llama-3.1-8B"))
    if not subject.panels:
        pytest.skip("needs the order of the C++ kernels: AVX2")
    plans = planner("Llama-3.1-8B", 3 * GIB).plans()
    found = {plan.choice.quantization: plan for plan in plans if plan.choice.kv_cache_dtype == "auto"}
    assert set(found) == {"auto", "int8", "int4"}
    assert found["auto"].spool_bytes == 0
    for text in ("int8", "int4"):
        plan, packing = found[text], parse_quantization(text)
        whole = subject.shape.weight_bytes(subject.dtype, packing)
        assert 0 < plan.read_bytes < plan.spool_bytes == pytest.approx(whole, rel=0.001)
        assert plan.peak_bytes <= 3 * GIB
        assert plan.tpot == pytest.approx(plan.read_bytes / MACHINE.disk_bytes_per_second)
    assert found["int4"].tpot < 0.5 * found["int8"].tpot < 0.3 * found["auto"].tpot


def test_what_is_transposed_is_packed_before_it_is_streamed() -> None:
    subject = Subject.of("gpt2-xl", config_of("gpt2-xl"))
    if not subject.panels:
        pytest.skip("needs the order of the C++ kernels: AVX2")
    whole = subject.shape.weight_bytes(subject.dtype, subject.quantization("auto"))
    (plan,) = Planner(subject, MACHINE, None, Demand(prompt=200, output=50), whole // 2).plans()
    assert 0 < plan.read_bytes < plan.spool_bytes == pytest.approx(whole, rel=0.001)


def test_half_precision_is_read_as_it_lies() -> None:
    """float16 runs in float32 on a CPU, its weights as they are stored: in memory and on the way from disk."""
    subject = Subject.of("half", config_of("Llama-3.2-1B") | {"torch_dtype": "float16"})
    if not subject.panels:
        pytest.skip("needs the order of the C++ kernels: AVX2")
    (plan,) = Planner(subject, MACHINE, None, Demand(prompt=200, output=50), 1229 * MIB).plans()
    packing, stored = subject.quantization("auto"), 2 * subject.shape.num_params
    assert subject.shape.weight_bytes("float32", packing) == pytest.approx(stored, rel=0.01)
    nothing = Rooms(subject.shape, "float32", packing, "float16").plan(0)
    assert nothing is not None
    assert nothing.step_bytes == pytest.approx(stored, rel=0.01)
    assert nothing.num_bytes < plan.accounts.weights
    assert 0 < plan.read_bytes < stored


def test_experts_that_are_not_cached_are_read_as_they_are_chosen() -> None:
    shape = ModelShape.from_config(
        {
            "model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "vocab_size": 1024, "num_experts": 64, "num_experts_per_tok": 4, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
            "tie_word_embeddings": True,
        }
    )  # fmt: skip
    packing = in_panels("bfloat16")
    whole = shape.weight_bytes("bfloat16", packing)
    stream = Rooms(shape, "bfloat16", packing).plan(whole // 4)
    assert stream is not None
    steps = Streamed(Roofline(shape, "bfloat16", packing, "auto", MACHINE), shape, stream, 1e6)
    absent, experts = 1 - stream.expert_slots / stream.num_experts, stream.expert_bytes
    assert steps.read_bytes(1) == pytest.approx(experts * 4 / 64 * absent)
    assert steps.read_bytes(1) < steps.read_bytes(8) < steps.read_bytes(10_000) <= experts
    work = Work(decodes=1, context=16, rows=1)
    assert steps.seconds(work) == pytest.approx(steps.read_bytes(1) / 1e6)
