from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pagoda as package
from pagoda.cli.main import summary
from pagoda.core.errors import BudgetError
from pagoda.kv.codecs import CODECS
from pagoda.kv.policies import POLICIES
from pagoda.models.catalog import embedded_model

from .conftest import pagoda

COMMANDS = ("run", "chat", "serve", "models", "doctor", "quantize", "pack", "prune", "bundle", "bench", "calibrate")


def test_help_lists_every_command_with_its_first_line() -> None:
    done = pagoda("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f"  {name} " in done.out
        assert summary(name) in done.out
    order = [done.out.index(f"\n  {name} ") for name in COMMANDS]
    assert order == sorted(order)


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        pagoda("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor seconds, so that a busy machine does not matter: 0.1 s measured; torch alone would take more than one.
    assert min(times) < 0.4, times


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str) -> None:
    done = pagoda(name, "--help")
    assert done.code == 0
    assert summary(name) in done.out
    assert "--json" in done.out


@pytest.mark.parametrize("name", ["bench", "cache"])
def test_summaries_of_commands_are_whole_sentences(name: str) -> None:
    said = pagoda(name, "--help").out.partition("Commands:")[2]
    assert said.strip()
    assert "..." not in said


@pytest.mark.parametrize("name", ["run", "chat", "serve"])
def test_help_lists_every_kv_policy_without_importing_one(name: str) -> None:
    said = " ".join(pagoda(name, "--help").out.split())
    for policy in [*POLICIES.names(), *CODECS.names(), "offload"]:
        assert f" {policy}," in said or f" {policy} (docs" in said, policy
    asked = f"import sys, pagoda.cli.{name}; print(*sorted({{'torch', 'pagoda.kv.policies.quest'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


REFUSED = """
import sys
from pagoda.cli.main import main
for command in (["run", "--prompt", "hi"], ["chat"], ["serve", "--port", "0"]):
    for name in sys.argv[1:]:
        try:
            main([*command, "lantern", name, "bogus"])
        except SystemExit as exit:
            assert exit.code == 2, (command, name, exit.code)
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_what_no_model_could_take_is_refused_before_torch_is_loaded() -> None:
    """Else each took two seconds to say so."""
    names = ("--dtype", "--kv", "--kv-cache-dtype", "--quantization", "--memory", "--device", "--weights")
    done = subprocess.run([sys.executable, "-c", REFUSED, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'bogus'") == 3 * len(names)


NOT_THERE = """
import sys
from pagoda.cli.main import main
for command in (["run", "MODEL", "hi"], ["chat", "MODEL"], ["serve", "MODEL"], ["pack", "MODEL"], ["bundle", "MODEL"],
                ["quantize", "MODEL", "out"], ["prune", "MODEL", "out"], ["calibrate", "locret", "MODEL"],
                ["bench", "kv", "MODEL"], ["bench", "weights", "MODEL"],
                ["serve", "lantern", "--chat-template", "{% for"], ["serve", "here", "here"]):
    try:
        main([sys.argv[1] if part == "MODEL" else part for part in command])
    except SystemExit as exit:
        assert exit.code == 2, (command, exit.code)
    assert not {"torch", "transformers"} & set(sys.modules), command
"""


def test_a_model_that_is_not_there_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_THERE, str(tmp_path / "gone")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gone: no such folder") == 10
    assert "chat template 'default', line 1" in done.stderr
    assert "model 'here' is there twice" in done.stderr


CUT = """
import sys
from pagoda.cli.main import main
for command in (["run", "MODEL", "hi"], ["serve", "MODEL", "--port", "0"], ["pack", "MODEL"], ["bench", "kv", "MODEL"]):
    try:
        main([sys.argv[1] if part == "MODEL" else part for part in command])
    except SystemExit as exit:
        assert exit.code == 2, (command, exit.code)
    assert not {"torch", "transformers"} & set(sys.modules), command
"""


@pytest.mark.parametrize(("left", "message"), [(None, "no weights; expected model.safetensors"), (0.5, "truncated;")])
def test_weights_that_are_not_whole_are_refused_before_torch_is_loaded(
    tmp_path: Path, left: float | None, message: str
) -> None:
    folder = shutil.copytree(embedded_model().path, tmp_path / "m")
    file = next(folder.glob("*.safetensors"))
    file.unlink() if left is None else os.truncate(file, int(file.stat().st_size * left))
    done = subprocess.run([sys.executable, "-c", CUT, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(message) == 4, done.stderr


NO_SUCH_NAME = """
import sys
from pagoda.cli.main import main
for command in (["calibrate", "bogus", "lantern"], ["calibrate", "locret+quest", "lantern"],
                ["bench", "kv", "lantern", "--policies", "bogus"], ["bench", "kv", "lantern", "--tasks", "bogus"],
                ["bench", "kv", "lantern", "--budgets", "bogus"], ["bench", "weights", "lantern", "--formats", "bogus"],
                ["bench", "weights", "lantern", "--formats", "int4 by bogus"],
                ["bench", "weights", "lantern", "--formats", "bogus by width"],
                ["quantize", "lantern", "out", "--method", "bogus"],
                ["quantize", "lantern", "out", "--format", "bogus"],
                ["run", "lantern", "hi", "--max-model-len", "123456"], ["chat", "lantern", "--max-model-len", "123456"],
                ["serve", "lantern", "--port", "0", "--max-model-len", "123456"],
                ["run", "lantern", "hi", "--memory", "900TiB"], ["prune", "lantern", "out"],
                ["doctor", "--calibrate", "--model", "bogus"], ["bench", "sim", "bogus"], ["bundle", "lantern"]):
    try:
        main(command)
    except SystemExit as exit:
        assert exit.code == 2, (command, exit.code)
    assert not {"torch", "transformers"} & set(sys.modules), command
"""


def test_names_and_lengths_that_no_command_takes_are_refused_before_torch_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", NO_SUCH_NAME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 18, done.stderr
    assert all(line.startswith("pagoda: error: ") for line in lines)
    assert sum("bogus" in line for line in lines) == 11
    assert sum("max_model_len is 123456" in line for line in lines) == 3


def test_the_version() -> None:
    assert pagoda("--version").out == f"pagoda {package.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["serv"],
            "no command 'serv'; commands: run, chat, serve, models, plan, doctor, quantize, pack, prune, bundle, "
            "cache, bench, calibrate; see pagoda --help",
        ),
        (["run", "lantern", "--no-such-option"], "No such option: --no-such-option; see pagoda run --help"),
        (["run"], "Missing argument"),
        (["bench"], "No command; commands: kv, weights, serve, sim; see pagoda bench --help"),
        (["cache", "rm"], "No such command 'rm'; commands: ls, verify, gc, pin; see pagoda cache --help"),
        (["run", "lantern", "x", "--max-tokens", "many"], "Invalid value for '--max-tokens'"),
    ],
)
def test_a_command_line_that_makes_no_sense_exits_2(args: list[str], message: str) -> None:
    done = pagoda(*args)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("pagoda: error: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_errors_become_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pagoda.cli._exits import exit_codes

    with pytest.raises(SystemExit) as caught, exit_codes():
        raise BudgetError("too small:\n  by far")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "pagoda: error: too small: by far\n"
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    with pytest.raises(ZeroDivisionError), exit_codes():
        1 / 0  # noqa: B018  # a bug keeps its traceback


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from pagoda.cli._exits import exit_codes\nwith exit_codes():\n    [print('x' * 1000) for _ in range(1000)]"
    done = subprocess.run(
        f'"{sys.executable}" -c "$CODE" | head -1', shell=True, env={**os.environ, "CODE": code},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""


def test_ctrl_c_before_anything_happened_is_quiet() -> None:
    process = subprocess.Popen([sys.executable, "-m", "pagoda", "chat", "/nowhere/" * 3], stdin=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT, 2, 1)
