"""Advice leads somewhere: the commands that sentences of pipeline/ name can be run, and the sentence is gone then."""

import ast
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser
from dvc.repo import Repo

from pipeline import __main__, artifacts, environment, ledger, paths, repository
from pipeline.errors import UserError
from pipeline.images.masks import load_mask
from tests import repo
from tests.conftest import ROOT
from tests.repo import commands, commit, git, run

Capture = pytest.CaptureFixture[str]
Stages = dict[str, list[str]]

EXAMPLES = {
    "paths.LABELS": paths.LABELS,
    "paths.LABELS_DVC": paths.LABELS_DVC,
    "paths.LEDGER": paths.LEDGER,
    "maker": "score@r01",
    "round_name": "r01",
    "name": "r01",
    "order.round": "r01",
    "row['round']": "r01",
    "paths.model(round_name)": "data/models/r01",
    "words[0]": "log",
}
"""What stands for the fields of a sentence."""
PROGRAMS = ("dvc", "git", "make", "source", "rm", "export", "python")


def texts() -> Iterator[tuple[str, str]]:
    """(where, text) of every string in the code that is no documentation, an example in place of each field."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text())
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                filled = [
                    str(part.value)
                    if isinstance(part, ast.Constant)
                    else str(EXAMPLES.get(ast.unparse(part.value), "example"))
                    for part in node.values
                    if isinstance(part, ast.Constant | ast.FormattedValue)
                ]
                yield where, "".join(filled)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and not {id(node)} & (parts | documentation)
            ):
                yield where, node.value


def advised() -> list[tuple[str, list[str]]]:
    """(where, command) of every command in a sentence."""
    found = [(where, text) for where, said in texts() for text in commands(said)]
    return [(where, shlex.split(text)) for where, text in found if text.split()[0] in PROGRAMS]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Names and outputs of DVC's stages of a project with the rounds r01 and r02."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (folder / "params.yaml").write_text("launch: python -m pipeline\n" + repo.PARAMS)
    with contextlib.chdir(folder), Repo() as opened:
        return {stage.addressing: [out.def_path for out in stage.outs] for stage in opened.index.stages}


def test_there_is_advice() -> None:
    words = {" ".join(command[:2]) for _, command in advised()}
    assert {"dvc repro", "dvc pull", "dvc checkout", "git init", "python -m", "source .venv/bin/activate"} <= words


@pytest.mark.parametrize("command", sorted({tuple(command) for _, command in advised()}), ids=" ".join)
def test_command_is_one_that_its_program_knows(
    command: tuple[str, ...], stages: dict[str, list[str]], capsys: Capture
) -> None:
    program, *words = command
    if program == "dvc":
        given = get_main_parser().parse_args(words)  # raises at a flag that there is not
        if given.cmd == "repro":
            assert set(given.targets) <= set(stages)
    elif command[:3] == ("python", "-m", "pipeline"):
        with contextlib.suppress(SystemExit):
            __main__.arguments(words[2:])
        assert "invalid choice" not in capsys.readouterr().err
    elif program == "git":
        done = subprocess.run(["git", words[0], "-h"], capture_output=True, text=True, check=False)
        assert "is not a git command" not in done.stderr or words[0] == "lfs"  # which is installed by itself
    elif program == "make":
        assert re.search(rf"^{re.escape(words[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program in ("source", "rm", "export")


LOADERS: dict[str, Callable[[str], object]] = {
    "labels": artifacts.load_labels,
    "purchases": artifacts.load_purchases,
    "audit": artifacts.load_audit,
    "judged gains": artifacts.load_judged,
    "metrics": artifacts.load_metrics,
    "model": artifacts.load_model,
    "log": artifacts.load_log,
    "scores": artifacts.load_scores,
    "costs": artifacts.load_costs,
    "features": artifacts.load_features,
    "selection": artifacts.load_selection,
    "pool": artifacts.load_pool,
    "audit table": artifacts.load_audit_table,
    "forecast": artifacts.load_forecast,
    "measured mIoUs": artifacts.load_measured,
    "manifest": lambda _: artifacts.load_manifest("test"),
    "classes": lambda _: artifacts.load_classes(),
    "prediction": lambda name: artifacts.load_prediction(name, "a"),
    "before": lambda name: artifacts.load_before(name, "a"),
    "after": lambda name: artifacts.load_after(name, "a"),
    "calibration": artifacts.load_calibration,
}
OF_R00 = ("labels", "purchases", "judged gains", "measured mIoUs", "audit", "metrics", "model", "log")
"""What there is of the round of the source model."""


@pytest.mark.parametrize(
    ("what", "round_name"), [*((what, "r01") for what in LOADERS), *((what, paths.SOURCE_ROUND) for what in OF_R00)]
)
@pytest.mark.parametrize("damaged", [False, True])
def test_stage_that_makes_a_lacking_or_damaged_file_exists_and_makes_it(
    what: str,
    round_name: str,
    damaged: bool,
    stages: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        LOADERS[what](round_name)
    path = Path(str(raised.value).split()[0])
    if damaged:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x00" if path.suffix in (".pt", ".npz", ".png", ".json") else b'a,b\n"1')
        with pytest.raises(UserError) as raised:
            LOADERS[what](round_name)
        assert "is not whole" in str(raised.value)
    named = [command.split()[-1] for command in commands(str(raised.value)) if command.startswith("dvc repro ")]
    assert any(path.is_relative_to(out) for out in stages[named[0]]), f"{named[0]} does not make {path}"


# what brings each sentence about, and what is left of it when its command was run


def do(command: str) -> None:
    """As a person would in a shell, in the environment of these tests."""
    program, *words = shlex.split(command)
    if program == "python":
        program = sys.executable
    called = [sys.executable, "-m", "dvc", *words] if program == "dvc" else [program, *words]
    who = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(called, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def refusal() -> str:
    with pytest.raises(UserError) as raised:
        run("r01")
    return str(raised.value)


def test_labels_that_are_not_here_are_pulled_or_joined(bought: Path, tmp_path: Path) -> None:
    do(f"dvc remote add --default beside {tmp_path / 'remote'}")
    do("dvc push --quiet")
    for command in ("dvc pull data/labels.dvc", "python -m pipeline join"):
        shutil.rmtree(paths.LABELS)
        shutil.rmtree(".dvc/cache")
        assert command in commands(refusal())
        do(command)
        run("r01")


def test_labels_of_another_commit_are_checked_out(bought: Path) -> None:
    older = git("rev-parse", "HEAD").strip()
    run("r02")
    commit("r02")
    git("checkout", "-q", older)
    assert "dvc checkout data/labels.dvc" in commands(refusal())
    do("dvc checkout data/labels.dvc")
    run("r01")


def test_ledger_that_was_stashed_is_popped(bought: Path) -> None:
    run("r02")
    do("git stash")
    assert "git stash pop" in commands(refusal())
    do("git stash pop")
    run("r02")
    assert len(ledger.load().deliveries) == 5


def test_file_of_ones_own_in_the_store_is_moved_out(bought: Path) -> None:
    shutil.copy(paths.mask(ledger.load().orders[0].key), paths.mask("stranger"))
    assert "a file of your own move out of data/labels" in refusal()
    shutil.move(paths.mask("stranger"), "stranger.png")
    run("r01")


def test_damaged_label_is_brought_again(bought: Path) -> None:
    path = paths.mask(ledger.load().orders[0].key)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    for command in commands(refusal()):
        do(command)
    assert path.read_bytes() == whole
    run("r01")


def test_lacking_label_is_brought_again(bought: Path) -> None:
    path = paths.mask(ledger.load().orders[0].key)
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError) as raised:
        load_mask(path)
    for command in commands(str(raised.value)):
        do(command)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["data/labels.dvc", "dvc.lock"])
def test_file_of_dvc_with_marks_of_a_merge_is_settled_by_join(bought: Path, name: str) -> None:
    text = paths.LABELS_DVC.read_text() if name == "data/labels.dvc" else "schema: '2.0'\n"
    Path("dvc.yaml").write_text("stages: {}\n")
    Path(name).write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> b\n")
    commit("marks")
    said = commands(refusal())
    assert said == ["dvc add data/labels", "python -m pipeline join", "dvc repro"]
    do(said[1])
    run("r01")


def test_half_a_line_of_the_ledger_is_shown(bought: Path) -> None:
    whole = paths.LEDGER.read_text()
    paths.LEDGER.write_text(whole + '{"event": "order", "rou')
    assert "git diff data/ledger.jsonl" in commands(refusal())
    assert '+{"event": "order", "rou' in git("diff", str(paths.LEDGER))
    paths.LEDGER.write_text(whole)
    run("r01")


def test_dvc_says_nothing_about_git_add_once_per_label(bought: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "annotate", "r02"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "git add" not in done.stdout + done.stderr
    assert done.stdout.splitlines() == ["r02: ordered 2 images from oracle"]


# a project without git


REQUIREMENTS = [path.name for path in ROOT.glob("requirements*.txt")]


@pytest.fixture
def unzipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as a forge's ZIP has it."""
    for name in ("pipeline", ".dvc"):
        shutil.copytree(
            ROOT / name, tmp_path / "zip" / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache")
        )
    for name in ("dvc.yaml", "params.yaml", "Makefile", ".gitignore", ".gitattributes", ".dvcignore", *REQUIREMENTS):
        shutil.copy(ROOT / name, tmp_path / "zip")
    monkeypatch.chdir(tmp_path / "zip")
    return tmp_path / "zip"


def test_without_git_make_and_stages_say_so_at_once_and_git_init_is_enough(unzipped: Path, capsys: Capture) -> None:
    made = subprocess.run(["make", "--no-print-directory", "demo"], capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert "this folder is no git repository" in made.stderr
    assert made.stdout == ""
    for words in (["doctor"], ["prepare"], ["annotate", "r01"], ["join"]):
        assert __main__.main(words) == 1
        assert "is no git repository, which DVC needs: run `git init` here" in capsys.readouterr().err
    do("git init")
    assert subprocess.run(["make", "--dry-run", "demo"], capture_output=True, check=False).returncode == 0
    assert __main__.main(["join"]) == 0
    do("dvc repro --dry prepare")


def test_project_in_a_repository_or_one_that_dvc_keeps_without_git_is_none_to_complain_of(
    unzipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(".dvc/config").open("a") as config:
        config.write("[core]\n    no_scm = true\n")
    repository.check()
    Path(".dvc/config").write_text("")
    with pytest.raises(UserError, match="git init"):
        repository.check()
    subprocess.run(["git", "init", "--quiet", ".."], check=True)
    repository.check()


# another python


def bare_python(folder: Path) -> Path:
    """A python with nothing installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin/python"


def test_python_without_our_packages_says_which_environment_to_activate(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare")
    done = subprocess.run([python, "-m", "pipeline", "status"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert re.search(r"bare/bin/python has no package '\w+': run `source \.venv/bin/activate`", done.stderr)


def test_own_environment_that_lacks_a_package_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python = bare_python(tmp_path / ".venv")
    done = subprocess.run(
        [python, "-m", "pipeline", "status"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "run `make .venv/installed`, which brings .venv up to date" in done.stderr


def test_dvc_called_by_its_path_says_so(unzipped: Path, tmp_path: Path) -> None:
    do("git init")
    bare = bare_python(tmp_path / "bare")
    path = f"{bare.parent}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "prepare"],
        capture_output=True,
        text=True,
        env={"PATH": path, "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode != 0
    assert "run `source .venv/bin/activate`" in done.stdout + done.stderr


def test_fault_of_our_own_is_no_lacking_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pipeline\.nothing"), environment.explained():
        __import__("pipeline.nothing")


def test_all_requirements_are_known_by_the_names_that_they_are_imported_as() -> None:
    imported = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"pipeline"}
    own_parts = {"dvc_data"}  # comes with dvc
    assert others - own_parts <= environment.REQUIRED
