import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__, artifacts, ledger, params_file, paths
from pipeline.ledger.entries import Ledger, Order
from pipeline.stages import STAGES
from tests import repo
from tests.conftest import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    for name in ("r01", "r02"):
        paths.scores(name).unlink()  # so that `select` ends in a sentence
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
    assert len(artifacts.load_selection("r02")) == 5  # of 4 minutes each, as the oracle books
    assert "r02: 5 images" in capsys.readouterr().out


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
    assert [name for name in shown if name in STAGES] == list(STAGES)
    assert {"status", "budget", "doctor"} <= set(shown)


@pytest.mark.parametrize(
    "argv", [["tune"], ["fly"], [], ["budget", "--rounds", "2"], ["budget", "--images", "9"], ["prepare", "r01"]]
)
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


def test_what_was_bought_is_removed_from_the_command_line(capsys: Capture) -> None:
    key = artifacts.load_manifest("pool")["key"].iloc[0]
    assert __main__.main(["remove", key]) == 1
    assert f"remove: {key!r} is not bought, or removed already" in capsys.readouterr().err
    ledger.append([Order("r01", key, "oracle", "cityscapes19", 0.5, 5.0, 0.5, "")])
    assert __main__.main(["remove", key]) == 0
    assert ledger.load().orders == []
    assert not paths.selection("r01").exists()


def test_ctrl_c_is_a_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.commands.status.collect", stop)
    assert __main__.main(["status"]) == 130
    assert capsys.readouterr().err == "status: stopped by hand; run it again and it goes on from here\n"


def test_a_round_that_has_bought_and_was_renamed_is_not_bought_again(capsys: Capture) -> None:
    key = artifacts.load_manifest("pool")["key"][0]
    ledger.append([Order("r01", key, "oracle", "cityscapes19", 1.0, 10.0, 1.0, ledger.now())])
    paths.PARAMS.write_text(paths.PARAMS.read_text().replace("r01", "first"))
    error = refused(capsys, "score", "first", "--after", "r00")
    assert "r01 has bought, but the budget table in params.yaml has first in its place" in error
    assert "rename first to r01, or put the line of r01 back before it" in error
    assert "scores.csv not found" in refused(capsys, "select", "r02")  # whose turn comes after that
    paths.PARAMS.write_text(paths.PARAMS.read_text().replace("first", "r01"))  # as it says
    assert "scores.csv not found" in refused(capsys, "select", "r01")


def test_a_table_without_its_last_rounds_replaces_none() -> None:
    book = Ledger(tuple(Order(f"r0{n}", f"{n}", "oracle", "x", 1.0, 1.0, 1.0, "") for n in (1, 2, 3)))
    assert book.replaced(["r01"]) is None
    assert book.replaced(["r01", "r02", "r03", "r04"]) is None
    assert book.replaced(["r01", "r02", "r04"]) == ("r03", "r04")
    assert book.replaced(["r01", "again", "r03"]) == ("r02", "again")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What `launch` starts, instead of starting it."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def note(file: str, words: list[str], environment: dict[str, str]) -> None:
        found.append((words, environment))
        raise KeyboardInterrupt  # exec does not return

    monkeypatch.setattr(os, "execvpe", note)
    for name in (__main__.LAUNCHED, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return found


def launch(words: str) -> None:
    paths.PARAMS.write_text(f"launch: {words}\n{repo.PARAMS}")


def test_launch_starts_the_stages_that_use_the_network(started: list) -> None:
    launch("OMP_NUM_THREADS=2 torchrun --nproc-per-node 4 -m pipeline")
    assert __main__.main(["score", "r01", "--after", "r00"]) == 130
    ((words, environment),) = started
    assert words == ["torchrun", "--nproc-per-node", "4", "-m", "pipeline", "score", "r01", "--after", "r00"]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment[__main__.LAUNCHED]


def test_launch_starts_nothing_else_nor_itself_again(
    started: list, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch("torchrun -m pipeline")
    assert "scores.csv not found" in refused(capsys, "select", "r01")
    for name in (__main__.LAUNCHED, "TORCHELASTIC_RUN_ID"):
        with monkeypatch.context() as inside:
            inside.setenv(name, "1")
            __main__._launch("torchrun -m pipeline", ["pretrain"])
    assert started == []


@pytest.mark.parametrize("given", ["python -m pipeline", None])
def test_the_default_launch_is_this_process(given: str | None, started: list, capsys: Capture) -> None:
    if given:
        launch(given)
    assert "source.csv not found" in refused(capsys, "pretrain")
    assert started == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("torchrum --nproc-per-node 4 -m pipeline", "but 'torchrum' does not start (No such file or directory)"),
        ("torchrun --nproc-per-node 4", "let it end in `-m pipeline`"),
        ('""', "let it end in `-m pipeline`"),
        ("python 'run -m pipeline", "which cannot be read (No closing quotation)"),
    ],
)
def test_a_launch_that_cannot_be_is_a_sentence(words: str, says: str, capsys: Capture) -> None:
    launch(words)
    assert says in refused(capsys, "pretrain")
