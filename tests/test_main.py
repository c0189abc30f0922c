import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__, artifacts, ledger, params_file, paths
from tests import repo
from tests.conftest import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def refused(capsys: Capture, *argv: str) -> str:
    assert __main__.main(list(argv)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{argv[0]}: ")
    assert error.count("\n") == 1
    return error


def test_unknown_round_is_answered_with_the_known(capsys: Capture) -> None:
    assert "unknown round 'r09': the budget table in params.yaml has r01, r02" in refused(capsys, "select", "r09")


@pytest.mark.parametrize(
    "flags", [["--after", "r01"], ["--images", "4"], ["--minutes", "30"], ["--after", "r00", "--images", "2"]]
)
def test_command_that_contradicts_the_table_is_refused(flags: list[str], capsys: Capture) -> None:
    error = refused(capsys, "select", "r01", *flags)
    assert f"{flags[-2]} {float(flags[-1]) if '--minutes' in flags else flags[-1]}" in error
    assert "is not what params.yaml says of r01" in error
    assert not ledger.load().orders


def test_command_as_dvc_writes_it_is_taken(capsys: Capture) -> None:
    scores = artifacts.load_manifest("pool")[["key"]].assign(gain=0.5, minutes=10.0)
    artifacts.save_scores("r01", scores)
    assert __main__.main(["select", "r01", "--after", "r00", "--images", "3"]) == 0
    assert len(artifacts.load_selection("r01")) == 3
    artifacts.save_scores("r02", scores)
    assert __main__.main(["select", "r02", "--after", "r01", "--minutes", "20"]) == 0
    assert len(artifacts.load_selection("r02")) == 2
    assert "r02: 2 images" in capsys.readouterr().out


def test_second_stage_while_one_runs_is_refused_and_named(capsys: Capture) -> None:
    paths.LOCK.write_text("`tune` (process 4711)")
    with paths.LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # the weaker lock: only a stage that asks for the whole of it is refused
        error = refused(capsys, "select", "r01")
        assert "`tune` (process 4711) is still running here: wait, or stop it" in error
        assert paths.LOCK.read_text() == "`tune` (process 4711)"
        assert __main__.main(["status"]) == 0  # looking is allowed
    capsys.readouterr()
    assert "scores.csv not found" in refused(capsys, "select", "r01")
    assert paths.LOCK.read_text() == f"`select` (process {os.getpid()})"


def test_other_processes_of_one_launch_do_not_lock_each_other_out(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with paths.LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "scores.csv not found" in refused(capsys, "select", "r01")


def test_lock_is_free_after_a_failure(capsys: Capture) -> None:
    for _ in range(2):
        assert "scores.csv not found" in refused(capsys, "select", "r01")


def test_user_error_is_one_line_and_exit_status_1() -> None:
    paths.PARAMS.write_text("seed: [")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "status"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("status: params.yaml is not valid YAML: ")
    assert done.stderr.count("\n") == 1


def test_no_params_here_is_a_sentence(capsys: Capture) -> None:
    paths.PARAMS.unlink()
    assert "run in the project's root" in refused(capsys, "status")
    assert not paths.LEDGER.exists()


def test_help_lists_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--help"])
    assert stopped.value.code == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert [name for name in shown if name in __main__.STAGES] == list(__main__.STAGES)
    assert {"status", "budget", "doctor"} <= set(shown)


@pytest.mark.parametrize("argv", [["tune"], ["fly"], [], ["budget", "--rounds", "2"], ["prepare", "r01"]])
def test_what_is_no_command_is_answered_with_the_usage(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(argv)
    assert stopped.value.code == 2
    assert "usage: python -m pipeline" in capsys.readouterr().err


def test_budget_is_written_from_the_command_line(capsys: Capture) -> None:
    assert __main__.main(["budget", "--images", "10", "--rounds", "3"]) == 0
    assert [line.images for line in params_file.load().budget.values()] == [4, 3, 3]
    assert __main__.main(["budget", "--minutes", "90", "--rounds", "2"]) == 0
    assert [line.minutes for line in params_file.load().budget.values()] == [45, 45]
    capsys.readouterr()
    assert "nothing to spend" in refused(capsys, "budget", "--images", "0", "--rounds", "3")


def test_ctrl_c_is_a_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.status.collect", stop)
    assert __main__.main(["status"]) == 130
    assert capsys.readouterr().err == "status: stopped by hand; run it again and it goes on from here\n"
