import errno
from pathlib import Path

import pytest
import torch

from pipeline import __main__, faults, params_file, paths
from pipeline.params import Params
from tests import repo


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(repo.PARAMS)
    return params_file.load()


FAULTS = {
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 78 GiB"),
        "the memory of this GPU is too small: lower pretrain.batch (2), compute.workers (0) or model.size ([16, 32])",
    ),
    "CPU": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 4 TB. Error 12"
        ),
        "the memory of this machine is too small: lower pretrain.batch (2)",
    ),
    "NumPy": (MemoryError("Unable to allocate 3 TiB for an array"), "the memory of this machine is too small"),
    "container": (
        RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
        "or of shared memory (/dev/shm, 64 MB in a container: `--shm-size 8g`): set compute.workers (0) lower",
    ),
    "disk": (OSError(errno.ENOSPC, "No space left on device", "data/a.pt"), "the disk is full (data/a.pt): make room"),
    "rights": (PermissionError(errno.EACCES, "Permission denied", "data/a.pt"), "permission denied (data/a.pt)"),
    "other process": (
        RuntimeError("[../gloo/transport/tcp/pair.cc:525] Read error [127.0.0.1]:1: Connection reset by peer"),
        "another process of this training has stopped",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_machine_does_is_a_sentence(name: str, params: Params) -> None:
    error, says = FAULTS[name]
    said = faults.sentence(error, "pretrain", params)
    assert said is not None
    assert says in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FileNotFoundError(errno.ENOENT, "No", "a")]
)
def test_what_is_a_fault_of_ours_is_none(error: Exception, params: Params) -> None:
    assert faults.sentence(error, "pretrain", params) is None


def test_a_real_allocation_that_is_too_large(params: Params) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    assert "lower compute.batch (8)" in str(faults.sentence(error.value, "score", params))


def test_the_command_ends_with_the_sentence(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/x")

    monkeypatch.setattr("pipeline.commands.status.collect", full)
    assert __main__.main(["status"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("status: the disk is full (data/x): make room")
    assert said.count("\n") == 1


def test_costs_of_a_class_that_there_is_not_are_refused_by_every_command(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = "reward: {reward: expected_cost, costs: {person: {rode: 3}}, "
    paths.PARAMS.write_text(repo.PARAMS.replace("reward: {", costs))
    assert __main__.main(["status"]) == 1
    assert "unknown class in tune.reward.costs 'rode': did you mean 'road'" in capsys.readouterr().err
