import collections
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import repo
from tests.forks import Forks

# Read by torch when it is first imported. The tests' tensors are small: on a busy machine threads that wait for each
# other made them up to seven times slower, and `pytest -n 2` would start two threads per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and however long one takes: a busy machine is no fault of the code.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first (`--no-loadscope-reorder` keeps it so): none is left to one worker at the end."""
    tests = collections.Counter(item.path for item in items)
    long = {item.path for item in items if {"server", "dvc"} & {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: (item.path not in long, -tests[item.path]))


@pytest.fixture
def shared_data() -> Path:
    """Real frames of CamVid, GTA5 and Cityscapes, which are not ours to ship."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data is not here: ../shared/data is absent")
    return path


@contextlib.contextmanager
def forking() -> Iterator[Forks | None]:
    """A server of forks; None where there are none."""
    if sys.platform != "linux":
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="regain-"))  # pytest's own paths are too long for a socket's address
    started = Forks(folder)
    yield started
    started.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks | None]:
    """Starts Python programs in no time."""
    with forking() as started:
        yield started


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project (tests/repo.py) that has bought nothing, to be copied."""
    folder = tmp_path_factory.mktemp("made") / "project"
    repo.make(folder)
    return folder


@pytest.fixture(scope="session")
def paid(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same when the oracle has delivered r01."""
    folder = tmp_path_factory.mktemp("paid") / "project"
    shutil.copytree(made, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_EXP_NAME", raising=False)
        repo.run("r01")
        repo.commit("r01")
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with labels and a source model, ready for `tune`, to be copied."""
    folder = tmp_path_factory.mktemp("labelled")
    repo.make_labelled(folder)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is a tiny project that has bought nothing."""
    return copied(made, tmp_path / "project", monkeypatch)


@pytest.fixture
def bought(paid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is a tiny project to which the oracle has delivered r01."""
    return copied(paid, tmp_path / "bought", monkeypatch)


def copied(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a project and go there."""
    shutil.copytree(folder, to)
    monkeypatch.chdir(to)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return to
