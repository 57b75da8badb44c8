"""What the command line says of itself: help, examples, completion."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mllm_selector import UsageError, arguments, cli, pick

COMMANDS = re.findall(
    r"^    ([a-z]+)\b",
    arguments.parser().format_help().partition("COMMAND\n")[2].partition("options:")[0],
    re.M,
)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, *([] if command is None else [command]), "--help")
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_are_understood(capsys, command):
    text = shown(capsys, command, "--help").partition("examples:\n")[2].replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "mllm-selector" in line]
    assert any(f"mllm-selector {command}" in line for line in lines)
    for line in lines:
        words = shlex.split(
            line.partition("mllm-selector ")[2].partition(">")[0].partition(")")[0].rstrip('"')
        )
        arguments.parser().parse_args(words)


def test_all_commands_are_found():
    assert {"select", "pick", "report", "diff", "completion", "doctor", "demo"} <= set(COMMANDS)


COMPLETE = """
eval "$({python} -m mllm_selector completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_LINE="{words}"
COMPREPLY=()
$(complete -p mllm-selector | sed 's/.*-F \\([^ ]*\\).*/\\1/') mllm-selector "${{COMP_WORDS[$COMP_CWORD]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mllm-selector pi", "pick"),
        ("mllm-selector pick --bud", "--budget"),
        ("mllm-selector pick --share size-n", "size-necessity"),
    ],
)
def test_bash_completes(words, expected):
    script = COMPLETE.format(python=shlex.quote(sys.executable), words=words)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"}
    )
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--group-count", "61", "--group-count: 61 groups of 60 candidates"),
        ("--smooth", "60", "--smooth: 60 neighbours of 60 candidates"),
        ("--trim", "0.9", "--budget: 12 samples cannot be chosen: --trim: 0.9 of each group"),
    ],
)
def test_errors_name_options_as_they_are_typed(tiny_run, tmp_path, capsys, option, value, says):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert (
        cli.main(["pick", "--budget", "12", "--run-dir", str(run), "--groups", "cluster", option, value]) == 2
    )
    assert f"mllm-selector: {says}" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "says"), [("--config", "cannot be read"), ("--scores", "is no file")])
def test_a_folder_in_the_place_of_a_file_is_named_by_its_option(tmp_path, capsys, option, says):
    assert (
        cli.main(["pick", "--budget", "12", "--run-dir", str(tmp_path / "run"), option, str(tmp_path)]) == 2
    )
    assert f"mllm-selector: {option}: {tmp_path} {says}" in capsys.readouterr().err


def test_the_demo_takes_no_config_that_it_would_not_read(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--run-dir", str(tmp_path / "run"), "--config", "run.toml"])
    assert "unrecognized arguments: --config run.toml" in capsys.readouterr().err


def test_from_python_they_are_the_arguments():
    with pytest.raises(UsageError, match=r"^group_count: 4 groups of 3 candidates"):
        pick([1.0, 2.0, 3.0], np.eye(3, dtype=np.float32), budget=1, group_count=4)


INTERRUPTED = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Interrupting())
sys.argv = ["mllm-selector", "doctor"]
runpy.run_module("mllm_selector", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["mllm_selector.arguments", "numpy", "pyarrow", "mllm_selector._internal"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stop_while_the_package_is_imported_ends_quietly(module, name, code):
    script = INTERRUPTED.format(module=module, signal=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    told = f"mllm-selector: stopped by {name}; the same command goes on where it stopped\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_every_shell_gets_a_script(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    assert "mllm-selector" in capsys.readouterr().out


def test_a_log_file_gets_plain_lines(tiny_pool, tiny_model, tmp_path):
    """Training, scoring and picking: no bars of any library, no terminal codes, every line whole."""
    arguments = [str(tiny_pool.path), "--images", str(tiny_pool.images), "--model", str(tiny_model)]
    arguments += ["--seed-size", "8", "--seed-batch-size", "4", "--engine", "torch", "--budget", "10%"]
    out = tmp_path / "out.json"
    arguments += ["--run-dir", str(tmp_path / "run"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "mllm_selector", "select", *arguments], capture_output=True, check=True
    )
    assert not re.search(rb"[\r\x1b]", done.stdout + done.stderr)
    lines = done.stderr.decode().splitlines()
    assert {"ingest", "seed", "export", "score", "pick", "report"} <= {line.split()[0] for line in lines}
    assert f"copy    {out}" in done.stdout.decode().splitlines()
    assert out.read_bytes() == (tmp_path / "run" / "subset.json").read_bytes()
