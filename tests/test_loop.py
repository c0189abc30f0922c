"""The whole loop with the real DVC and git, on one small project that grows from chapter to chapter, in this order."""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import artifacts
from pipeline.errors import UserError
from pipeline.images.masks import load_mask, save_mask
from tests import kill, project
from tests.forks import Forks
from tests.project import Project, Run

pytestmark = pytest.mark.dvc

STAGES = ("snapshot", "score", "select", "forecast", "predict", "annotate", "audit", "tune", "evaluate")
R01 = [f"{stage}@r01" for stage in STAGES]
R02 = [name.replace("r01", "r02") for name in R01]
FIRST = ["prepare", "regions", "pretrain", "evaluate_source@r00", *R01, "report"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Project, Run]:
    """A project of one round, and how its first `dvc repro` went."""
    tiny = project.make(tmp_path_factory.mktemp("loop") / "tiny", forks=forks)
    return tiny, tiny.repro()


@pytest.fixture
def tiny(made: tuple[Project, Run]) -> Project:
    return made[0]


def bought_once(tiny: Project, rounds: dict[str, int]) -> None:
    """Every round has ordered and received so many images, none of them twice; every mask is what was delivered."""
    entries = tiny.ledger()
    for event in ("order", "delivery"):
        counted = [entry["round"] for entry in entries if entry["event"] == event]
        assert {name: counted.count(name) for name in counted} == rounds
    assert len(set(tiny.ordered())) == len(tiny.ordered())
    assert tiny.lost() == []


def one_sentence(run: Run, command: str) -> str:
    """What a command that the user has to mend says: exit status 1, one line, no traceback."""
    assert run.status == 1, run.output
    assert "Traceback" not in run.output
    said = [line for line in run.output.splitlines() if line.startswith(f"{command}: ")]
    assert len(said) == 1, run.output
    return said[0]


def test_first_run_makes_everything(made: tuple[Project, Run]) -> None:
    tiny, first = made
    assert sorted(first.ran) == sorted(FIRST)
    assert [entry["event"] for entry in tiny.ledger()] == ["order"] * 3 + ["delivery"] * 3
    bought_once(tiny, {"r01": 3})
    assert "nfiles: 3" in (tiny.folder / "data/labels.dvc").read_text()
    assert "md5" in (tiny.folder / "dvc.lock").read_text()
    for name in ("r00", "r01"):
        measures = json.loads((tiny.folder / f"data/metrics/{name}.json").read_text())
        assert 0 <= measures["miou"] == measures["miou_argmax"] <= 1
        assert 0 <= measures["miou_expected_iou"] <= 1
        assert (tiny.folder / f"reports/training/{name}.png").stat().st_size
    assert (tiny.folder / "reports/audit/r01.png").stat().st_size
    audit = json.loads((tiny.folder / "data/rounds/r01/audit.json").read_text())
    assert audit["signal"] is None  # three images
    assert audit["realised"] > 0
    forecast = json.loads((tiny.folder / "data/rounds/r01/forecast.json").read_text())
    assert 0 <= forecast["low"] <= forecast["expected"] <= forecast["high"] <= 1
    panels = [path.stem.split("-", 2)[2] for path in (tiny.folder / "reports/samples").iterdir()]
    assert sorted(panels) == sorted(tiny.ordered())
    predicted = [path.name for path in (tiny.folder / "data/rounds/r01/predictions").iterdir()]
    assert sorted(predicted) == sorted(f"{key}.{kind}" for key in tiny.ordered() for kind in ("png", "jpg"))
    assert json.loads((tiny.folder / "reports/summary.json").read_text())["labels"] == 3
    for name in ("rounds.csv", "curve.png"):
        assert (tiny.folder / "reports" / name).stat().st_size
    kept = [path.name for path in (tiny.folder / "data/checkpoints").iterdir()]
    assert kept == ["tune-r01-likelihood.pt"]  # for another reward
    status = json.loads(tiny.pipeline("status", "--json").output)
    assert (status["next"], status["spent"]) == ("all rounds are done", {"images": 3, "minutes": 30.0})


def test_git_takes_what_is_small_and_nothing_else(tiny: Project) -> None:
    assert tiny.dvc("plots", "show").status == 0
    assert (tiny.folder / "dvc_plots/index.html").is_file()
    for name in ("data/weights/encoder.pth", "data/camvid"):
        (tiny.folder / name).parent.mkdir(exist_ok=True)
        (tiny.folder / name).write_text("what examples/camvid/README.md puts there")
    taken = tiny.git("ls-files", "--others", "--exclude-standard").splitlines()
    assert {"dvc.lock", "data/labels.dvc", "data/ledger.jsonl", "data/rounds/r01/labels.json"} <= set(taken)
    folders = ("data/labels.dvc", "data/ledger.jsonl", "data/rounds/", "data/metrics/", "reports/", "dvc.lock")
    assert [name for name in taken if not name.startswith(folders)] == []
    assert sum((tiny.folder / name).stat().st_size for name in taken) < 500_000
    shutil.rmtree(tiny.folder / "dvc_plots")


def test_second_run_does_nothing(tiny: Project) -> None:
    assert not re.search(r"\.(pt|png)$", tiny.git("ls-files", "--others", "--exclude-standard", "data"), re.MULTILINE)
    tiny.commit("r01")
    before = tiny.results()
    again = tiny.repro()
    assert again.ran == again.restored == []
    assert tiny.git("status", "--porcelain") == ""
    assert "up to date" in tiny.dvc("status").output
    assert tiny.results() == before


def test_another_root_and_launch_train_nothing_anew(tiny: Project) -> None:
    changes = [("root: data/town/gta5", "root: ./data/town/gta5"), ("launch: python", "launch: env python")]
    for change in changes:
        tiny.edit(*change)
    outdated = re.findall(r"^(\S+):$", tiny.dvc("status").output, re.MULTILINE)
    assert sorted(outdated) == ["prepare", "settings"]  # which look, and record the same
    for old, new in changes:
        tiny.edit(new, old)


def test_new_line_runs_only_its_round(tiny: Project) -> None:
    before = tiny.results()
    assert tiny.pipeline("budget", "--images", "5", "--rounds", "2").status == 0
    assert "  r02: {after: r01, images: 2}\n" in (tiny.folder / "params.yaml").read_text()
    run = tiny.repro()
    assert sorted(run.ran) == sorted([*R02, "report"])
    assert run.restored == []
    bought_once(tiny, {"r01": 3, "r02": 2})
    labels = json.loads((tiny.folder / "data/rounds/r02/labels.json").read_text())
    assert [row["key"] for row in labels] == tiny.ordered()
    of_r01 = {name: digest for name, digest in before.items() if "r01" in name or "r00" in name}
    assert tiny.results().items() >= of_r01.items()
    tiny.commit("r02")


def test_budget_down_and_up_again_runs_only_the_report(tiny: Project) -> None:
    before = tiny.results()
    for change in (
        ("  r02: {after: r01, images: 2}\n", ""),
        ("images: 3}\n", "images: 3}\n  r02: {after: r01, images: 2}\n"),
    ):
        tiny.edit(*change)
        run = tiny.repro()
        assert [*run.ran, *run.restored] == ["report"]
        bought_once(tiny, {"r01": 3, "r02": 2})
        labels = json.loads((tiny.folder / "reports/summary.json").read_text())["labels"]
        assert labels == (5 if "r02" in (tiny.folder / "params.yaml").read_text() else 3)
    assert tiny.results() == before
    assert tiny.git("status", "--porcelain") == ""


def test_changed_tuning_retunes_and_rescores_but_buys_nothing(tiny: Project) -> None:
    before, ledger = tiny.results(), (tiny.folder / "data/ledger.jsonl").read_bytes()
    tiny.edit("batch: 4, lr: 1e-3}", "batch: 4, lr: 4e-3}")
    ran = tiny.repro().ran
    assert {"tune@r01", "evaluate@r01", "score@r02", "predict@r02", "tune@r02", "evaluate@r02", "report"} <= set(ran)
    assert not {"prepare", "regions", "pretrain", "evaluate_source@r00", *R01[:7]} & set(ran)
    assert (tiny.folder / "data/ledger.jsonl").read_bytes() == ledger
    bought_once(tiny, {"r01": 3, "r02": 2})
    after = tiny.results()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {"data/models/r01/model.pt", "data/models/r02/model.pt", "data/rounds/r02/scores.csv"} <= changed
    kept = ("data/labels", "data/models/r00", "data/rounds/r01", "data/rounds/r02/labels", "data/rounds/r02/selection")
    of_its_model = "data/rounds/r01/after/"
    assert not [name for name in changed if name.startswith(kept) and not name.startswith(of_its_model)]


def test_changed_pretraining_and_force_buy_nothing(tiny: Project) -> None:
    before, ledger = tiny.results(), (tiny.folder / "data/ledger.jsonl").read_bytes()
    tiny.edit("lr: 2e-3", "lr: 5e-3")
    planned = tiny.dvc("repro", "--dry").ran
    assert "pretrain" in planned
    assert "prepare" not in planned
    assert sorted(tiny.repro("--force").ran) == sorted([*FIRST, *R02])
    assert (tiny.folder / "data/ledger.jsonl").read_bytes() == ledger
    bought_once(tiny, {"r01": 3, "r02": 2})
    after = tiny.results()
    assert after["data/models/r00/model.pt"] != before["data/models/r00/model.pt"]
    assert after["data/rounds/r01/scores.csv"] != before["data/rounds/r01/scores.csv"]
    assert after["data/labels.dvc"] == before["data/labels.dvc"]
    tiny.commit("other training")


def test_old_commit_and_back(tiny: Project) -> None:
    now, newest = tiny.results(), tiny.git("rev-parse", "HEAD")
    old = tiny.git("log", "--format=%H", "--grep=^r01$")
    for commit, rounds in ((old, {"r01": 3}), (newest, {"r01": 3, "r02": 2})):
        tiny.git("checkout", "--quiet", commit)
        done = tiny.dvc("checkout", "--force")
        assert done.status == 0, done.output
        assert len(list((tiny.folder / "data/labels").iterdir())) == sum(rounds.values())
        run = tiny.repro()
        assert run.ran == run.restored == []
        bought_once(tiny, rounds)
    assert tiny.results() == now


def test_everything_comes_back_from_the_remote(tiny: Project) -> None:
    now = tiny.results()
    assert tiny.dvc("push").status == 0
    tiny.git("clean", "--force", "-dxq")
    assert not (tiny.folder / "data/labels").exists()
    assert not (tiny.folder / ".dvc/cache").exists()

    refused = tiny.dvc("repro", "--force", "--single-item", "annotate@r02")  # before the pull
    assert refused.status != 0
    assert "Traceback" not in refused.output
    assert "annotate: data/labels lacks 5 labels of those paid for" in refused.output
    assert "run `dvc pull data/labels.dvc`" in refused.output
    assert len(tiny.ordered()) == 5

    pulled = tiny.dvc("pull")
    assert pulled.status == 0, pulled.output
    run = tiny.repro()
    assert run.ran == run.restored == []
    bought_once(tiny, {"r01": 3, "r02": 2})
    assert tiny.results() == now


def test_clone_of_all_that_git_does_not_ignore_is_up_to_date_after_a_pull(tiny: Project) -> None:
    clone = tiny._replace(folder=tiny.folder.parent / "clone")
    tiny.git("clone", "--quiet", "--config", "core.autocrlf=true", str(tiny.folder), str(clone.folder))
    assert clone.dvc("pull").status == 0
    assert clone.dvc("status").output.strip() == "Data and pipelines are up to date."
    run = clone.repro()
    assert run.ran == run.restored == []
    assert clone.ledger() == tiny.ledger()
    assert clone.git("status", "--porcelain") == ""
    assert clone.results() == tiny.results()
    shutil.rmtree(clone.folder)


def said(tiny: Project, load: Callable[[], object]) -> str:
    """What is said of a file when it is read."""
    with contextlib.chdir(tiny.folder), pytest.raises(UserError) as raised:
        load()
    return str(raised.value)


LACKING: dict[str, Callable[[], object]] = {
    "data/rounds/r00/labels.json": lambda: artifacts.load_labels("r00"),
    "data/metrics/r00.json": lambda: artifacts.load_metrics("r00"),
    "data/models/r00/model.pt": lambda: artifacts.load_model("r00"),
    "data/rounds/r01/labels.json": lambda: artifacts.load_labels("r01"),
    "data/rounds/r01/calibration.json": lambda: artifacts.load_calibration("r01"),
    "data/rounds/r02/features.npz": lambda: artifacts.load_features("r02"),
}


@pytest.mark.parametrize("name", LACKING)
def test_file_that_is_not_here_is_made_by_the_stage_that_is_named(tiny: Project, name: str) -> None:
    now = tiny.results()
    (tiny.folder / name).unlink()
    command = re.findall(r"`dvc ([^`]+)`", said(tiny, LACKING[name]))[-1]
    done = tiny.dvc(*command.split())
    assert done.status == 0, done.output
    assert tiny.results() == now
    with contextlib.chdir(tiny.folder):
        LACKING[name]()


def test_file_that_is_not_whole_is_made_by_the_stage_that_is_named(tiny: Project) -> None:
    now, name = tiny.results(), "data/rounds/r01/labels.json"
    (tiny.folder / name).write_text("[")
    commands = re.findall(r"`dvc ([^`]+)`", said(tiny, LACKING[name]))
    assert commands == ["repro -s -f annotate@r01", "repro"]
    for command in commands:
        run = tiny.dvc(*command.split())
        assert run.status == 0, run.output
    assert tiny.results() == now


def test_change_by_hand_is_taken_or_undone_as_tune_says(tiny: Project) -> None:
    now, key = tiny.results(), tiny.ordered("r01")[0]
    path = tiny.folder / f"data/labels/{key}.png"
    mask = load_mask(path)
    changed = mask.copy()
    changed[0, 0] = (int(mask[0, 0]) + 1) % 19
    save_mask(path, changed)
    sentence = one_sentence(tiny.pipeline("tune", "r01", "--after", "r00"), "tune")
    taken, undone, *_ = re.findall(r"`dvc ([^`]+)`", sentence)
    assert tiny.dvc(*undone.split()).status == 0
    assert tiny.results() == now
    save_mask(path, changed)
    assert tiny.dvc(*taken.split()).status == 0
    assert tiny.ledger()[-1]["annotator"] == "hand"
    assert tiny.lost() == []
    tiny.git("checkout", "--quiet", "--", ".")
    assert tiny.dvc("checkout", "--force").status == 0
    assert tiny.results() == now


def test_experiments_do_not_buy(tiny: Project) -> None:
    tiny.git("checkout", "--quiet", "-B", "main")
    now, ledger = tiny.results(), (tiny.folder / "data/ledger.jsonl").read_bytes()
    refused = tiny.dvc("exp", "run", "--temp", "--set-param", "+budget.r03={after: r02, images: 1}")
    assert refused.status != 0
    assert "annotate: r03 would buy 1 image inside `dvc exp run`" in refused.output, refused.output
    assert sorted(refused.ran) == sorted(f"{stage}@r03" for stage in STAGES[:6])
    assert (tiny.folder / "data/ledger.jsonl").read_bytes() == ledger
    assert not (tiny.folder / "data/rounds/r03").exists()
    assert tiny.git("status", "--porcelain") == ""
    assert tiny.results() == now


def test_minutes_buy_what_fits(tiny: Project) -> None:
    tiny.edit("  r02: {after: r01, images: 2}\n", "  r02: {after: r01, images: 2}\n  r03: {after: r02, minutes: 25}\n")
    run = tiny.repro("annotate@r03")
    assert sorted(run.ran) == sorted(f"{stage}@r03" for stage in STAGES[:6])
    bought_once(tiny, {"r01": 3, "r02": 2, "r03": 2})  # 10 minutes each


def test_another_seed_is_another_run(tiny: Project) -> None:
    other = project.make(tiny.folder.parent / "other", seed=2, forks=tiny.forks)
    other.stages("settings", "prepare", "pretrain", "snapshot r01", "score r01", "select r01")
    chosen = [(p.folder / "data/rounds/r01/selection.csv").read_text() for p in (tiny, other)]
    keys = [[line.split(",")[0] for line in text.splitlines()[1:]] for text in chosen]
    assert len(keys[0]) == len(keys[1]) == 3
    assert sorted(keys[0]) != sorted(keys[1])
    assert tiny.hashes(["data/manifests/pool.csv"]) == other.hashes(["data/manifests/pool.csv"])
    assert other.ledger() == []
    shutil.rmtree(other.folder)


@pytest.mark.parametrize(
    "fault", ["a weight that is not a number", "a weight that overflows", "another width", "another class set"]
)
def test_model_that_cannot_be_used_is_a_sentence(tiny: Project, fault: str) -> None:
    scores, model = tiny.folder / "data/rounds/r03/scores.csv", tiny.folder / "data/models/r02/model.pt"
    params = tiny.folder / "params.yaml"
    kept = scores.read_bytes(), model.read_bytes(), params.read_text()
    if fault.startswith("a weight"):
        content = torch.load(model, weights_only=True)
        weight = next(weight for name, weight in content["state"].items() if name.endswith("weight"))
        weight[(0,) * weight.dim()] = torch.nan if fault.endswith("number") else 3e38
        torch.save(content, model)
        says = ": the weights " if fault.endswith("number") else "the probabilities that data/models/r02 gives for "
    elif fault == "another width":
        tiny.edit("width: 16", "width: 24")
        says = "data/models/r02 was made with width 16, but params.yaml says 24: run `dvc repro` to make it anew"
    else:
        tiny.edit("classes: cityscapes19", "classes: camvid11")
        says = "labels were bought in the classes road, "
    run = tiny.pipeline("score", "r03", "--after", "r02")
    if fault == "a weight that is not a number":
        [command] = re.findall(r"`dvc ([^`]+)`", run.output)
        assert tiny.dvc(*command.split()).status == 0
        assert model.read_bytes() == kept[1]
    model.write_bytes(kept[1])
    params.write_text(kept[2])
    assert says in one_sentence(run, "score")
    assert scores.read_bytes() == kept[0]


@pytest.mark.parametrize("name", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_file_of_dvc_that_a_kill_cut_short_costs_no_label(tiny: Project, name: str) -> None:
    """DVC writes these in place: a kill in that moment leaves a file that DVC refuses, as the README says."""
    now, path = tiny.results(), tiny.folder / name
    ledger = (tiny.folder / "data/ledger.jsonl").read_bytes()
    path.write_text("")
    refused = tiny.dvc("repro", "annotate@r01")
    assert refused.status != 0
    assert kill.DVC_FILES[name] in refused.output, refused.output
    path.unlink()
    if name == "dvc.lock":
        tiny.git("checkout", name)
    run = tiny.repro("annotate@r01")
    assert run.ran == run.restored == []
    assert (tiny.folder / "data/ledger.jsonl").read_bytes() == ledger
    assert tiny.results() == now


def test_python_of_the_stages_is_this_one(tiny: Project) -> None:
    """`python3` in dvc.yaml is found through PATH; these tests mean the environment that they run in."""
    said = tiny.run("python3", "-c", "import sys; print(sys.executable)").output.strip()
    assert Path(said).parent == Path(sys.executable).parent
