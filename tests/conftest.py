"""What holds for every test: no network, quiet libraries, and a false terminal that is not the developer's."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Set before anything imports huggingface_hub: a test that reaches for the network fails at once instead of hanging.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("COLUMNS", "120")

# A machine that is slow, or busy with something else, fails no property: neither by a time per example nor as a whole.
settings.register_profile(
    "patient", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
settings.load_profile("patient")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's folder."""
    return ROOT


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the tests marked ``gpu``, and the engine's tests there (``make test-gpu``)."""
    parser.addoption("--device", default="cpu", help="where engines under test run: cpu (default) or cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Whether the machine has a GPU must not change what a test of the CPU does: ``auto`` would take it."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` or ``ray`` are skipped where there is none, those marked ``host`` on a GPU."""
    if config.getoption("--device") != "cpu":
        _skip(items, "host", "about what only the CPU's engine does")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "no CUDA device")
    if any(item.get_closest_marker("ray") for item in items):
        import importlib.util

        if importlib.util.find_spec("ray") is None:
            _skip(items, "ray", "ray is not installed")


# Each engine that starts collects garbage, which walks every object there is: 0.2 s with torch, transformers and 10,000
# tests in memory. So whatever a module's tests find there is set aside for good, once what the last ones left is gone.
_module: list[object] = [None]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Garbage is looked for among what the tests of this module make."""
    module = item.getparent(pytest.Module)
    if module is not _module[0]:
        _module[0] = module
        gc.collect()
        gc.freeze()
    return (yield)


def pytest_unconfigure() -> None:
    """What is set aside ends with the interpreter, or its extensions complain of leaks."""
    gc.unfreeze()


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))
