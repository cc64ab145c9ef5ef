"""Every op of the folder has signature, reference, cases, tolerances; every implementation equals the reference."""

import importlib
import importlib.util
import inspect
import pkgutil
from functools import partial
from itertools import product
from types import ModuleType

import pytest
import torch

from pagoda.kernels import dispatch
from pagoda.kernels import ops as ops_package
from pagoda.kernels.case import Case, Make, outputs

NAMES = [m.name for m in pkgutil.iter_modules(ops_package.__path__) if not m.name.startswith("_")]
MODULES: dict[str, ModuleType] = {name: importlib.import_module(f"pagoda.kernels.ops.{name}") for name in NAMES}
OP_OF = {name: "paged_attention" if name == "attention" else name for name in NAMES}
dispatch.load_providers()

ALL = [
    pytest.param(name, implementation.name, case, dtype, id=f"{name}-{implementation.name}-{case.name}-{dtype}"[:140])
    for name, module in MODULES.items()
    for implementation in dispatch.OPS[OP_OF[name]].implementations
    for case in module.CASES
    for dtype in module.TOLERANCE
    if implementation.name != "reference" or dtype != torch.float32
]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    module, function = MODULES[name], getattr(MODULES[name], OP_OF[name])
    assert module.__doc__
    assert function.__doc__
    assert list(inspect.signature(function).parameters) == list(inspect.signature(module.reference).parameters)
    assert getattr(ops_package, OP_OF[name]) is function, "not exported by pagoda.kernels.ops"
    assert module.CASES
    assert torch.float32 in module.TOLERANCE
    names = [case.name for case in module.CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "implementation", "case", "dtype"), ALL)
def test_implementation_equals_reference(name, implementation, case, dtype):
    """In float32 against the reference; the reference's own half precision against its float32."""
    module, op = MODULES[name], dispatch.OPS[OP_OF[name]]
    rtol, atol = module.TOLERANCE[dtype]
    arguments = case.make(Make(dtype))
    needs = needs_of(name, arguments)
    body = next(i for i in op.implementations if i.name == implementation)
    if reason := body.why_not(needs):
        pytest.skip(f"{name}: {implementation} does not do {reason}")
    got = outputs(case, body.run, arguments)
    expected = outputs(case, module.reference, arguments if implementation != "reference" else widened(arguments))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=rtol, atol=atol)


# Below the best that there is, with which the test above runs.
SETS = ["base", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512bf16slow"]


def lower_sets() -> list[str]:
    """Instruction sets that this machine has and does not choose; none where the C++ bodies are not built."""
    if not importlib.util.find_spec("pagoda.kernels._cpu"):
        return []
    from pagoda.kernels._extension import best_isa

    return SETS[: SETS.index(best_isa())] if best_isa() in SETS else SETS


def by_instruction_set(name: str) -> list[dispatch.Implementation]:
    return [i for i in dispatch.OPS[OP_OF[name]].implementations if "isa" in inspect.signature(i.run).parameters]


@pytest.mark.parametrize("isa", lower_sets())
@pytest.mark.parametrize("name", [name for name in NAMES if name != "attention" and by_instruction_set(name)])
def test_lower_instruction_sets_equal_the_reference(name, isa):
    """What a machine without AVX-512, or without its later parts, computes (attention: test_cpu_attention)."""
    module, body = MODULES[name], by_instruction_set(name)[0]
    for case, dtype in product(module.CASES, module.TOLERANCE):
        rtol, atol = module.TOLERANCE[dtype]
        arguments = case.make(Make(dtype))
        if body.why_not(needs_of(name, arguments)):
            continue
        got = outputs(case, partial(body.run, isa=isa), arguments)
        for one, other in zip(got, outputs(case, module.reference, arguments), strict=True):
            torch.testing.assert_close(one.float(), other.float(), rtol=rtol, atol=atol)


def needs_of(name: str, arguments: dict) -> dispatch.Needs:
    """What the op's own function asks for with these arguments, caught on its way to the chooser."""
    caught: list[dispatch.Needs] = []

    def resolve(op, key, needs):
        caught.append(needs)
        return lambda *args, **kwargs: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.Op, "resolve", resolve)
        patch.setattr(dispatch.OPS[OP_OF[name]], "chosen", {})
        getattr(MODULES[name], OP_OF[name])(**arguments)
    return caught[0]


def widened(arguments: dict) -> dict:
    """The same numbers in float32, storage excepted (its dtype is part of the op: it rounds)."""
    keep = {"pages", "prob_sums", "prob_counts"}
    wide = {}
    for key, value in arguments.items():
        half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        wide[key] = value.float() if half and key not in keep else value
    return wide


def test_cases_are_the_same_every_time():
    case: Case = MODULES["rms_norm"].CASES[0]
    assert torch.equal(case.make(Make())["x"], case.make(Make())["x"])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_reference_on_cuda(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module = MODULES[name]
    for case in module.CASES:
        expected = outputs(case, module.reference, case.make(Make()))
        got = outputs(case, module.reference, case.make(Make(device="cuda")))
        for one, other in zip(got, expected, strict=True):
            assert torch.allclose(one.cpu().float(), other.float(), rtol=1e-3, atol=1e-3), case.name
