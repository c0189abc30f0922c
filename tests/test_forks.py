"""A fork behaves as a process that was started afresh, as far as those who start it can tell."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forks import Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no forks")

SAYS = """\
import os, sys
print(os.getcwd(), sys.argv[1:], os.environ.get("OF_ITS_OWN"), __name__)
print("to the other", file=sys.stderr)
sys.exit({how})
"""
WAITS = """\
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
PATIENCE = 60.0
"""Seconds."""


def program(folder: Path, text: str) -> None:
    (folder / "pipeline").mkdir()
    (folder / "pipeline/__main__.py").write_text(text)


@pytest.mark.parametrize(("how", "status"), [("", 0), ("7", 7), ("None", 0), ("'a sentence'", 1)])
def test_it_says_and_ends_what_a_process_does(forks: Forks, tmp_path: Path, how: str, status: int) -> None:
    program(tmp_path, SAYS.format(how=how))
    environment = {"OF_ITS_OWN": "value", "PYTHONUNBUFFERED": "1"}
    words = ["-m", "pipeline", "one", "two words"]
    said = [
        subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        for python in (forks.bin / "python3", sys.executable)
    ]
    assert said[0].stdout == f"{tmp_path} ['one', 'two words'] value __main__\n"
    ended = [(done.returncode, done.stdout, done.stderr) for done in said]
    assert ended[0] == ended[1]
    assert said[0].returncode == status


def test_fault_has_its_traceback(forks: Forks, tmp_path: Path) -> None:
    program(tmp_path, "1 / 0")
    words = [forks.bin / "python3", "-m", "pipeline"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_it_dies_with_its_client_and_all_that_it_has_started_too(forks: Forks, tmp_path: Path) -> None:
    program(tmp_path, WAITS)
    words = [forks.bin / "python3", "-m", "pipeline"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        numbers = [int(word) for word in client.stdout.readline().split()]
        assert all(alive(number) for number in numbers)
        client.kill()
    deadline = time.monotonic() + PATIENCE
    while any(alive(number) for number in numbers):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.01)


def test_client_of_a_killed_program_says_so(forks: Forks, tmp_path: Path) -> None:
    program(tmp_path, WAITS)
    words = [forks.bin / "python3", "-m", "pipeline"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        os.killpg(int(client.stdout.readline().split()[0]), signal.SIGKILL)
        assert client.communicate()[1] == "the process was killed\n"
    assert client.returncode == 1


def test_another_program_is_the_real_pythons(forks: Forks) -> None:
    words = [forks.bin / "python3", "-c", "import sys; print(sys.executable)"]
    assert subprocess.check_output(words, text=True).strip() == sys.executable


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
