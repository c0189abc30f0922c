"""dvc.yaml repeats what the code knows: imports, parameters, paths. Here the two are compared."""

import contextlib
import importlib
import inspect
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import networkx
import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from pipeline import __main__, params_file, paths
from pipeline.params import UNTRACKED, BudgetLine
from pipeline.stages import STAGES, settings
from pipeline.stages.running import line_of
from tests import opened, repo
from tests import project as tiny_project
from tests.conftest import ROOT
from tests.opened import Opened


class Stage(NamedTuple):
    name: str
    round: str
    after: str
    line: BudgetLine | None
    command: list[str]
    code: set[str]
    params: set[str]
    deps: set[str]
    outs: dict[str, Any]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dvc.yaml beside a budget of one round in images and one in minutes."""
    folder = tmp_path_factory.mktemp("project")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    launch = "launch: torchrun --nproc-per-node 4 -m pipeline\n"
    (folder / "params.yaml").write_text(launch + repo.PARAMS)
    return folder


@pytest.fixture(scope="module")
def stages(project: Path) -> list[Stage]:
    return unrolled(project)


def unrolled(folder: Path) -> list[Stage]:
    """As DVC itself unrolls them, each after those that it depends on."""
    budget = params_file.load(folder / "params.yaml").budget
    found = []
    with contextlib.chdir(folder), Repo() as dvc:  # DVC names stages relative to the working directory
        for stage in networkx.dfs_postorder_nodes(dvc.index.graph):
            name, _, round_name = stage.addressing.partition("@")
            line = budget.get(round_name)
            tracked = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            deps = {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}
            found.append(
                Stage(
                    name=name.removesuffix("_source"),
                    round=round_name or paths.SOURCE_ROUND,
                    after=line.after if line else "",
                    line=line,
                    command=stage.cmd.partition(" #")[0].split(),
                    code={dep for dep in deps if dep.startswith("pipeline/")},
                    params={name for dep in tracked for name in dep.params},
                    deps={dep for dep in deps if not dep.startswith("pipeline/")},
                    outs={out.def_path: out for out in stage.outs},
                )
            )
    return found


def test_stages_are_those_of_the_command_line_once_a_round(stages: list[Stage]) -> None:
    once = [
        (stage, paths.SOURCE_ROUND) for stage in ("settings", "prepare", "regions", "pretrain", "evaluate", "report")
    ]
    of_a_round = ("snapshot", "score", "select", "forecast", "predict", "annotate", "audit", "tune", "evaluate")
    every = [(stage, name) for name in ("r01", "r02") for stage in of_a_round]
    assert sorted((stage.name, stage.round) for stage in stages) == sorted(once + every)
    assert {stage.name for stage in stages} == set(STAGES)


def test_commands_are_understood_and_agree_with_the_table(stages: list[Stage], project: Path) -> None:
    loaded = params_file.load(project / "params.yaml")
    for stage in stages:
        start = stage.command.index("pipeline") + 1
        assert stage.command[:start] == ["python3", "-m", "pipeline"]  # whatever `launch` says
        given = __main__.arguments(stage.command[start:])
        assert given.command == stage.name
        assert getattr(given, "round", stage.round) == stage.round
        amounts = {name: getattr(given, name, None) for name in ("after", "images", "minutes")}
        if stage.line and "line" in inspect.signature(run_of(stage)).parameters:
            assert line_of(given.round, loaded, **amounts) == stage.line
    chosen = [stage.command[-4:] for stage in stages if stage.name == "select"]
    # in the command, so that a changed line of the table runs its own round anew and no other
    assert sorted(chosen) == [["--after", "r00", "--images", "3"], ["--after", "r01", "--minutes", "20"]]


def run_of(stage: Stage) -> Any:
    return importlib.import_module(f"pipeline.stages.{stage.name}").run


def test_params_are_the_sections_that_the_stage_is_given(stages: list[Stage]) -> None:
    for stage in stages:
        given = set(inspect.signature(run_of(stage)).parameters) - {"round_name", "line", "settings"}
        sections = {name.partition(".")[0] for name in stage.params}
        assert sections == given - set(UNTRACKED), f"{stage.name}: params: {sorted(given)}"
        parts = {name for name in stage.params if "." in name}
        # what is measured of `tune.reward`, not how it is learnt: another rate or length measures no round anew
        measured = {f"tune.reward.{name}" for name in ("reward", "costs", "tolerance", "overlap")}
        assert parts == (measured if stage.name == "evaluate" else set())


def test_code_is_where_everything_is_that_the_stage_imports(stages: list[Stage]) -> None:
    """By folders, and by files where there is no folder: none lacks, none is too much."""
    graph = grimp.build_graph("pipeline", cache_dir=None)
    wrong = []
    for stage in stages:
        own = run_of(stage).__module__
        named = {place for module in graph.find_upstream_modules(own) | {own} if (place := code(module, own))}
        if named != stage.code:
            lacks, extra = sorted(named - stage.code), sorted(stage.code - named)
            wrong.append(f"{stage.name}@{stage.round} lacks {lacks} and has {extra} too much")
    assert not wrong, "dvc.yaml, `deps`\n" + "\n".join(wrong)


def code(module: str, stage: str) -> str | None:
    """What dvc.yaml names for a module that a stage imports; None if there is nothing in it."""
    parts = module.split(".")
    folder = Path(*parts[:2])
    if len(parts) > 1 and (ROOT / folder).is_dir() and not stage.startswith(f"pipeline.{parts[1]}."):
        return folder.as_posix()
    path = Path(*parts, "__init__.py") if (ROOT / Path(*parts)).is_dir() else Path(*parts).with_suffix(".py")
    return path.as_posix() if (ROOT / path).read_text().strip() and len(parts) > 1 else None


BUDGET = ("{after: r00, images: 3}", "{after: r01, minutes: 20}", "{after: r02, images: 2}")
"""Three rounds: what is read of all earlier ones is not only that of the one before."""
CHECKS = "pipeline.inputs"
"""Looks, before any stage starts, whether params.yaml still means what `prepare` has recorded."""
NOT_DECLARED = {
    "params.yaml": "DVC is given the sections that a stage is given, `launch` and the roots are where and not what",
    "data/ledger.jsonl": "it only grows: what was bought stays bought, and what of it matters is in labels.json",
    "data/labels": "DVC keeps it by itself, and labels.json has the hash of every mask, which is checked",
    "data/town": "the images of a root, which manifests name with their hashes, which are checked",
    "data/manifests/colours.csv": "read with the class names; it is a dependency only where colours are shown",
}
"""Files and folders that stages read without a dependency. Also data/checkpoints, but not before they are stopped."""
NOT_OPENED = {
    ("annotate", "forecast.json"): "nobody is asked again before the round before is measured",
    ("annotate", "predictions"): "for people, and here the known labels answer",
}
"""Dependencies that a stage does not open in this run."""
FOR_REGIONS = "data/regions"
"""A dependency that only a run by regions opens: tests/test_region_maps.py."""
WRITTEN = {"data/stage.lock", "data/checkpoints", "data/ledger.jsonl", "data/labels"}
"""What is written and no output: it is kept by git, by `dvc add`, or not at all."""


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Stage, Opened]]:
    """Every stage of three rounds, run in DVC's order by the command that dvc.yaml has, and what it opened."""
    tiny = tiny_project.make(tmp_path_factory.mktemp("loop") / "tiny", budget=BUDGET)
    found = []
    with contextlib.chdir(tiny.folder), pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_EXP_NAME", raising=False)
        for name, value in tiny.environment().items():
            if name.startswith("DVC_"):
                patch.setenv(name, value)
        for stage in unrolled(tiny.folder):
            with opened.recorded(tiny.folder) as files:
                assert __main__.main(stage.command[stage.command.index("pipeline") + 1 :]) == 0, stage.command
            found.append((stage, files))
    return found


def within(name: str, places: Iterable[str]) -> bool:
    return any(Path(name).is_relative_to(place) for place in places)


def read_by(files: Opened) -> list[str]:
    """By the stage itself."""
    return sorted(name for name, readers in files.read.items() if any(CHECKS not in modules for modules in readers))


def test_stages_read_their_dependencies_and_nothing_else(loop: list[tuple[Stage, Opened]]) -> None:
    excused = set()
    for stage, files in loop:
        more = [name for name in read_by(files) if not within(name, {*stage.deps, *stage.outs})]
        assert [name for name in more if not within(name, NOT_DECLARED)] == [], f"{stage.name}@{stage.round}"
        excused |= {place for place in NOT_DECLARED for name in more if within(name, [place])}
    assert excused == set(NOT_DECLARED)


def test_every_dependency_is_read(loop: list[tuple[Stage, Opened]]) -> None:
    for stage, files in loop:
        unread = {dep for dep in stage.deps if not any(within(name, [dep]) for name in read_by(files))}
        excused = {f"data/rounds/{stage.round}/{name}" for of, name in NOT_OPENED if of == stage.name}
        assert unread == excused | ({FOR_REGIONS} & stage.deps), f"{stage.name}@{stage.round}"


def test_stages_write_their_outputs_and_nothing_else(loop: list[tuple[Stage, Opened]]) -> None:
    for stage, files in loop:
        more = [name for name in sorted(files.written) if not within(name, {*stage.outs, *WRITTEN})]
        assert more == [], f"{stage.name}@{stage.round}"
        for out in stage.outs:
            assert any(within(name, [out]) for name in files.written) or out == str(paths.TOWN), out  # by processes
    assert {name for _, files in loop for name in files.written} >= {str(paths.LEDGER), str(paths.LOCK)}


def test_what_was_bought_is_neither_deleted_nor_replayed(stages: list[Stage]) -> None:
    for stage in stages:
        for path, out in stage.outs.items():
            kept = stage.name in ("select", "annotate")
            of_the_round = (paths.images(stage.round).as_posix(), paths.REGIONS.as_posix())
            assert out.persist == (kept or path in of_the_round), path
            assert not (kept and out.use_cache), path
            assert bool(out.metric) == (path in (paths.SUMMARY.as_posix(), paths.metrics(stage.round).as_posix())), path


def test_git_ignores_what_dvc_keeps_and_nothing_else_that_stages_write(stages: list[Stage]) -> None:
    outs = {path: out for stage in stages for path, out in stage.outs.items()}
    inside = [f"{path}/x" if not Path(path).suffix else path for path in outs]
    never = [paths.mask("x"), paths.checkpoint("x"), paths.LOCK]
    always = [paths.LEDGER, paths.LABELS_DVC, Path("dvc.lock"), Path("data/.gitignore")]
    asked = [*inside, *map(str, never), *map(str, always)]
    command = ["git", "check-ignore", "--no-index", *asked]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    cached = [path for path, out in zip(inside, outs.values(), strict=True) if out.use_cache]
    assert sorted(ignored) == sorted([*cached, *map(str, never)])


def test_plots_are_outs(stages: list[Stage], project: Path) -> None:
    outs = {path for stage in stages for path in stage.outs}
    plots = params_file.read_yaml(project / "dvc.yaml")["plots"]
    assert plots
    assert set(plots) <= outs


def test_a_section_that_has_a_default_may_be_missing(project: Path) -> None:
    """DVC itself fails on a missing one, and that only after the stage has run."""
    with contextlib.chdir(project):
        given = params_file.read_yaml(paths.PARAMS)
        settings.run(settings=params_file.load())
        with Repo() as repository:
            tracked = [
                dep for stage in repository.index.stages for dep in stage.deps if isinstance(dep, ParamsDependency)
            ]
            read = {name: value for dep in tracked for name, value in dep.get_hash().value.items()}
    left_out = {"calibration", "score", "select", "evaluate", "report"}
    assert left_out <= read.keys() - given.keys()
    assert read["score"]["acquisition"] == "shortfall"


def test_settings_are_those_in_force(project: Path) -> None:
    with contextlib.chdir(project):
        of_few = params_file.load()
        settings.run(settings=of_few)
        before = paths.SETTINGS.read_bytes()
        # what the defaults are may be written out, and nothing is out of date
        text = (
            paths.PARAMS.read_text() + "score: {smooth: 0.01, unit: image}\nselect:\nevaluate: {calibration_bins: 15}\n"
        )
        settings.run(settings=params_file.parse(params_file.YAML(typ="safe").load(text), "params.yaml"))
        assert paths.SETTINGS.read_bytes() == before
        assert b"oracle" not in before  # where labels come from re-runs nothing
