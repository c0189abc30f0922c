"""What a training depends on, and nothing else."""

import shutil
from pathlib import Path

import grimp
import pandas as pd
import pytest
import torch

from pipeline.training import fingerprints
from tests.conftest import ROOT


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, to be edited."""
    copy = tmp_path / "pipeline"
    shutil.copytree(ROOT / "pipeline", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "PACKAGE", copy)
    return copy


def test_values_and_files_count_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    first = fingerprints.of(1, path)
    assert fingerprints.of(1, path) == first
    assert len({first, fingerprints.of(2, path), fingerprints.of(path, 1), fingerprints.of("1", path)}) == 4
    path.write_text("b")
    assert fingerprints.of(1, path) != first


@pytest.mark.parametrize("module", ["pipeline.stages.pretrain", "pipeline.stages.tune"])
def test_code_is_what_the_module_imports(module: str) -> None:
    graph = grimp.build_graph("pipeline", cache_dir=None)
    found = graph.find_upstream_modules(module) | {module}
    packages = {".".join(name.split(".")[:end]) for name in found for end in range(1, name.count(".") + 1)}
    of_packages = set().union(*map(graph.find_upstream_modules, packages))  # Python runs them, too
    assert fingerprints.sources(module).keys() == found | packages | of_packages


@pytest.mark.parametrize(
    ("edited", "likelihood", "reward"),
    [
        ("training/losses.py", True, True),
        ("images/reading.py", True, True),
        ("stages/tune.py", True, True),
        ("rewards/counts.py", False, True),
        ("estimators/counterfactual.py", False, True),
        ("training/reward_tuning.py", False, True),
        ("commands/status.py", False, False),
        ("annotators/label_studio/client.py", False, False),
    ],
)
def test_an_edit_counts_where_it_is_used(edited: str, likelihood: bool, reward: bool, package: Path) -> None:
    def codes() -> tuple[str, str]:
        return fingerprints.code(
            "pipeline.stages.tune", without=("pipeline.training.reward_tuning",)
        ), fingerprints.code("pipeline.stages.tune")

    before = codes()
    with (package / edited).open("a") as file:
        file.write("# edited\n")
    assert tuple(a != b for a, b in zip(before, codes(), strict=True)) == (likelihood, reward)


def test_an_import_that_comes_late_counts_too(package: Path) -> None:
    (package / "late.py").write_text("def f():\n    from pipeline import deep\n    import pipeline.deeper.still\n")
    for name in ("deep.py", "deeper/__init__.py", "deeper/still.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("")
    modules = ["pipeline", "pipeline.deep", "pipeline.deeper", "pipeline.deeper.still", "pipeline.late"]
    assert sorted(fingerprints.sources("pipeline.late")) == modules


def test_rows_are_contents_and_not_places() -> None:
    frame = pd.DataFrame(
        {"key": ["a", "b"], "image": ["1", "2"], "mask": ["3", "4"], "sha256": ["5", "6"], "n_x": [7, 8]}
    )
    first = fingerprints.rows(frame)
    assert fingerprints.rows(frame.assign(image="elsewhere", mask="")) == first
    others = [
        frame[::-1],
        frame[:1],
        frame.assign(sha256=["5", "7"]),
        frame.assign(n_x=0),
        frame.assign(key=["a", "c"]),
    ]
    assert len({first, *map(fingerprints.rows, others)}) == 6


def test_every_bit_of_the_weights_counts() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    first = fingerprints.weights(state)
    assert fingerprints.weights({name: value.clone() for name, value in state.items()}) == first
    assert fingerprints.weights(state | {"a": state["a"].nextafter(torch.tensor(9.0))}) != first
    assert fingerprints.weights(state | {"a": state["a"].view(3, 2)}) != first
    assert fingerprints.weights(state | {"b": torch.tensor(1.0)}) != first
    assert fingerprints.weights({"c": state["a"], "b": state["b"]}) != first
