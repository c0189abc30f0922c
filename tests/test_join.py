"""Branches that each bought labels, merged by the real git and put together by `python -m pipeline join`, with DVC."""

import datetime
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo

from pipeline import __main__, artifacts, ledger, paths, storage
from pipeline.annotators import ANNOTATORS
from pipeline.annotators.contract import Answer, Request
from pipeline.commands import join, status
from pipeline.errors import UserError
from pipeline.images.masks import load_mask, save_mask
from pipeline.ledger import label_store
from pipeline.ledger.entries import Delivery, Order, Removal, Skip
from pipeline.params import Select
from pipeline.stages import select
from tests import fakes, repo
from tests.repo import commands, commit, git

Capture = pytest.CaptureFixture[str]
CLASS = {"a": 3, "b": 5}
"""What everything is to the annotator of a branch."""


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On branch main. Every entry of the ledger is a minute later than the one before."""
    start = datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC)
    clock = (start + datetime.timedelta(minutes=number) for number in itertools.count())
    monkeypatch.setattr(ledger, "now", lambda: next(clock).isoformat(timespec="seconds"))
    for name, number in CLASS.items():
        monkeypatch.setitem(ANNOTATORS, name, answers(name, number))
    return project


def answers(name: str, number: int) -> Callable[[Request], Iterator[Answer]]:
    def annotator(request: Request) -> Iterator[Answer]:
        for order in request.orders:
            if order.key not in request.known:
                yield Answer(order.key, np.full(fakes.SIZE, number, np.uint8), 2.5, name)

    return annotator


def run(round_name: str, annotator: str, **line_changes: str) -> None:
    line = repo.params().budget[round_name].model_copy(update=line_changes)
    repo.run(round_name, line, annotator=annotator)


def pool() -> list[str]:
    return list(artifacts.load_manifest("pool")["key"])


def leave(branch: str) -> None:
    """Check a branch out that has bought nothing, with its labels."""
    git("checkout", "-q", branch)
    shutil.rmtree(paths.LABELS, ignore_errors=True)
    if paths.LABELS_DVC.is_file():
        with Repo() as opened:
            opened.checkout([str(paths.LABELS_DVC)], force=True)


def buy(branch: str, round_name: str, keys: list[str]) -> None:
    """On a new branch from main, whose annotator is called like it."""
    leave("main")
    git("checkout", "-q", "-b", branch)
    repo.select(round_name, keys)
    run(round_name, branch, after="r00")
    commit(f"{branch} bought {round_name}")


Situation = tuple[tuple[str, list[int]], tuple[str, list[int]], dict[str, list[int]]]
SITUATIONS: dict[str, Situation] = {  # (round, images) of a, of b, and what stands in the end
    "one round, other images": (("r01", [0, 1]), ("r01", [2, 3]), {"r01": [0, 1, 2, 3]}),
    "two rounds": (("r01", [0, 1]), ("r02", [2, 3]), {"r01": [0, 1], "r02": [2, 3]}),
    "one round, an image of both": (("r01", [0, 1]), ("r01", [1, 2]), {"r01": [0, 1, 2]}),
    "two rounds, an image of both": (("r01", [0, 1]), ("r02", [1, 2]), {"r01": [0, 1], "r02": [2]}),
    "one round, the same images": (("r01", [0, 1]), ("r01", [0, 1]), {"r01": [0, 1]}),
}


def finish(how: str) -> None:
    """End a merge that has stopped at conflicts as people do."""
    if how in ("ours", "theirs"):
        for path in git("diff", "--relative", "--name-only", "--diff-filter=U").splitlines():
            git("checkout", f"--{how}", path)
    if how != "unfinished":
        commit("merged")


def merge(branch: str, how: str) -> None:
    """`marks`: as git does without our .gitattributes, with conflict marks in every file, which are committed."""
    if how == "marks":
        Path(".git/info/attributes").write_text(
            "data/ledger.jsonl merge=text\ndata/labels.dvc merge=text\ndata/rounds/** merge=text\n"
        )
    git("merge", "--no-edit", branch, ok=(0, 1))
    finish(how)


def everything() -> dict[Path, bytes]:
    files = [paths.LEDGER, paths.LABELS_DVC, *paths.LABELS.iterdir(), *paths.ROUNDS.rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize(
    ("situation", "how"),
    [
        ("one round, other images", "ours"),
        ("one round, other images", "marks"),
        ("two rounds", "ours"),
        ("two rounds", "unfinished"),
        ("one round, an image of both", "theirs"),
        ("two rounds, an image of both", "marks"),
        ("two rounds, an image of both", "theirs"),
        ("one round, the same images", "unfinished"),
    ],
)
def test_merged_branches_go_on_with_all_labels_of_both(
    project: Path, situation: str, how: str, capsys: Capture
) -> None:
    of_a, of_b, stands = SITUATIONS[situation]
    keys = pool()
    buy("a", of_a[0], [keys[number] for number in of_a[1]])
    buy("b", of_b[0], [keys[number] for number in of_b[1]])
    leave("a")
    merge("b", how)
    with pytest.raises(UserError, match="`python -m pipeline join`"):
        label_store.check(ledger.load())

    assert __main__.main(["join"]) == 0, capsys.readouterr().err
    book = ledger.load()
    for name, numbers in stands.items():
        assert [order.key for order in book.ordered(name)] == [keys[number] for number in numbers]
    for delivery in book.deliveries:
        assert storage.sha256(paths.mask(delivery.key)) == delivery.sha256
        first = "a" if delivery.key in [keys[number] for number in of_a[1]] else "b"  # a bought first
        assert delivery.annotator == first
        assert (load_mask(paths.mask(delivery.key)) == CLASS[first]).all()
    assert sum(book.spent(name)[1] for name in ("r01", "r02")) == 2.5 * (len(of_a[1]) + len(of_b[1]))
    before = everything()
    assert __main__.main(["join"]) == 0
    assert everything() == before

    for name in stands:
        run(name, "oracle")  # and nothing is asked for
        assert sorted(row["key"] for row in artifacts.load_labels(name) if row["round"] == name) == sorted(
            keys[number] for number in stands[name]
        )
    assert ledger.load() == book
    commit("joined")
    with Repo() as opened:
        assert opened.status([str(paths.LABELS_DVC)]) == {}


def bring(branch: str, how: str = "ours") -> None:
    """Merge a branch into the one that is checked out, and join."""
    merge(branch, how)
    assert __main__.main(["join"]) == 0


def both(project: Path) -> list[str]:
    """Branches a and b have bought two images each, the second image both of them; a is checked out."""
    keys = pool()
    buy("a", "r01", keys[:2])
    buy("b", "r01", keys[1:3])
    leave("a")
    return keys


def test_two_costs_and_one_label_of_an_image_that_both_bought(project: Path, capsys: Capture) -> None:
    keys = both(project)
    bring("b")
    assert (
        f"{keys[1]!r} was bought twice, this time in r01: the label that came first counts" in capsys.readouterr().out
    )
    book = ledger.load()
    assert [(one.round, one.key, one.annotator, one.minutes) for one in book.doubled("r01")] == [
        ("r01", keys[1], "b", 2.5)
    ]
    assert book.spent("r01") == (3, 10.0)
    assert status.collect(repo.params())["doubled"] == {"r01": (1, 2.5)}
    unused = book.doubled("r01")[0].sha256  # can be had again
    cached = [path for path in Path(".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert unused in {storage.sha256(path) for path in cached}


def test_round_that_loses_an_image_to_another_round_is_filled_anew(project: Path) -> None:
    keys = pool()
    repo.predict("r02")
    buy("a", "r01", keys[:2])
    buy("b", "r02", keys[1:2])
    leave("a")
    bring("b")
    assert ledger.load().ordered("r02") == []
    assert not paths.selection("r02").exists()
    line = repo.params().budget["r02"]
    select.run("r02", line, seed=1, select=Select(method="draw"), annotate=repo.params().annotate)
    chosen = list(artifacts.load_selection("r02")["key"])
    assert chosen
    assert not set(chosen) & set(keys[:2])
    run("r02", "oracle")


def test_label_bought_on_a_branch_that_was_squashed_comes_back(project: Path) -> None:
    keys = both(project)
    git("merge", "--squash", "b", ok=(0, 1))
    finish("ours")
    assert __main__.main(["join"]) == 0
    assert sorted(path.stem for path in paths.LABELS.iterdir()) == sorted(keys[:3])


def test_rebased_branch_is_joined(project: Path) -> None:
    keys = both(project)
    git("rebase", "b", ok=(0, 1))
    assert __main__.main(["join"]) == 0
    git("add", "--all")
    git("-c", "core.editor=true", "rebase", "--continue")
    assert __main__.main(["join"]) == 0
    run("r01", "oracle")
    assert sorted(row["key"] for row in artifacts.load_labels("r01")) == sorted(keys[:3])


def test_ledger_of_one_side_only_gets_the_lines_of_the_other_back(project: Path) -> None:
    keys = both(project)
    merge("b", "ours")
    git("checkout", "-q", "HEAD^1", "--", str(paths.LEDGER))
    commit("the merge took ours")
    git("branch", "-q", "-D", "b")
    assert __main__.main(["join"]) == 0
    assert sorted(order.key for order in ledger.load().orders) == sorted(keys[:3])
    run("r01", "oracle")


def test_project_that_began_anew_gets_nothing_back(project: Path) -> None:
    keys = both(project)
    bring("b")
    commit("joined")
    for path in (paths.LEDGER, paths.LABELS_DVC, paths.labels("r01")):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.LABELS)
    commit("anew, with other classes")
    repo.select("r01", keys[3:5])
    run("r01", "oracle")
    assert __main__.main(["join"]) == 0
    assert [order.key for order in ledger.load().orders] == keys[3:5]


def test_label_stays_that_another_branch_skipped(project: Path) -> None:
    keys = pool()
    repo.select("r01", keys[:2])
    ledger.append([Order("r01", key, "people", "cityscapes19", 0.1, 10.0, 0.5, ledger.now()) for key in keys[:2]])
    commit("ordered")
    git("checkout", "-q", "-b", "b")
    ledger.append([Skip("r01", keys[0], "b", 0.5, ledger.now(), "7")])
    commit("skipped")
    git("checkout", "-q", "main")
    run("r01", "a")
    commit("labelled")
    bring("b")
    book = ledger.load()
    assert [order.key for order in book.ordered("r01")] == keys[:2]
    assert book.spent("r01") == (2, 5.5)
    run("r01", "oracle")


def test_newest_correction_counts_whichever_side_it_comes_from(project: Path) -> None:
    keys = pool()
    buy("a", "r01", keys[:1])
    git("checkout", "-q", "-b", "b")
    newer = np.full(fakes.SIZE, 7, np.uint8)
    older = np.full(fakes.SIZE, 6, np.uint8)
    git("checkout", "-q", "a")
    save_mask(paths.mask(keys[0]), older)
    run("r01", "oracle")  # on record first, and last in the merged file
    commit("corrected")
    leave("b")
    save_mask(paths.mask(keys[0]), newer)
    run("r01", "oracle")
    commit("corrected again")
    bring("a")
    np.testing.assert_array_equal(load_mask(paths.mask(keys[0])), newer)
    assert ledger.load().deliveries[-1].sha256 == storage.sha256(paths.mask(keys[0]))


def test_correction_by_hand_that_is_on_no_record_stays(project: Path) -> None:
    keys = both(project)
    by_hand = np.full(fakes.SIZE, 9, np.uint8)
    save_mask(paths.mask(keys[1]), by_hand)
    bring("b")
    np.testing.assert_array_equal(load_mask(paths.mask(keys[1])), by_hand)
    run("r01", "oracle")
    assert [d.annotator for d in ledger.load().deliveries if d.key == keys[1]] == ["a", "hand"]


def test_label_that_gives_way_can_be_had_again(project: Path) -> None:
    keys = both(project)
    merge("b", "theirs")
    leave("a")
    git("checkout", "-q", "-B", "main2", "a")
    bring("b", "theirs")
    save_mask(paths.mask(keys[1]), np.full(fakes.SIZE, CLASS["b"], np.uint8))
    for path in Path(".dvc/cache/files/md5").rglob("*"):
        if path.is_file() and storage.sha256(path) == storage.sha256(paths.mask(keys[1])):
            path.chmod(0o644)
            path.unlink()
    gone = paths.mask(keys[1]).read_bytes()
    assert __main__.main(["join"]) == 0
    assert (load_mask(paths.mask(keys[1])) == CLASS["a"]).all()
    assert gone in [path.read_bytes() for path in Path(".dvc/cache/files/md5").rglob("*") if path.is_file()]


def test_what_has_to_stay_out_of_the_pool_stays_out_whichever_purchase_counts() -> None:
    orders = [
        Order(name, "k", "people", "cityscapes19", 0.1, 10.0, 0.5, f"2025-01-0{n}")
        for n, name in ((1, "r01"), (2, "r02"))
    ]
    first = Delivery("r01", "k", "a", 2.5, "", "2025-01-03")
    joined, doubles = join.settle([orders[0], first, orders[1], Removal("r02", "k", "2025-01-04")])
    assert joined == [orders[0], first, Removal("r01", "k", "2025-01-04"), *doubles]
    assert [(one.round, one.minutes) for one in doubles] == [("r02", 0.0)]
    assert join.settle(joined) == (joined, [])


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_killed_before_any_write_it_ends_the_same_when_it_is_run_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(project)
    merge("b", "marks")
    shutil.copytree(project, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "undisturbed")
        assert __main__.main(["join"]) == 0
        wanted = everything()
    write = storage.write
    for allowed in itertools.count():
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(project, tmp_path / "killed")
        left = iter(range(allowed))

        def stop(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed
            write(path, data)

        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "killed")
            try:
                with monkeypatch.context() as inner:
                    inner.setattr(storage, "write", stop)
                    assert __main__.main(["join"]) == 0
                ended = True
            except Killed:
                ended = False
            assert __main__.main(["join"]) == 0
            assert everything() == wanted
        if ended:
            break
    assert allowed >= 3


# another place


@pytest.fixture
def places(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """Branch b is bought in a clone with a cache of its own; here a is checked out and has merged it, not joined."""
    keys = pool()
    other = tmp_path / "other"
    git("clone", "-q", str(project), str(other))
    buy("a", "r01", keys[:2])
    with monkeypatch.context() as patch:
        patch.chdir(other)
        shutil.copytree(project / "pool", "pool", dirs_exist_ok=True)
        shutil.copytree(project / "data/manifests", "data/manifests", dirs_exist_ok=True)
        git("checkout", "-q", "-b", "b")
        repo.select("r01", keys[1:3])
        repo.score("r01", keys)  # git does not have them
        run("r01", "b")
        commit("b bought r01")
    git("pull", "-q", "--no-rebase", "--no-edit", str(other), "b", ok=(0, 1))
    finish("ours")
    return other, keys


def dvc(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_labels_of_another_place_come_from_the_remote(
    places: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    other, keys = places
    dvc("remote", "add", "--default", "shared", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    assert __main__.main(["join"]) == 1
    said = capsys.readouterr().err
    assert f"1 labels that are paid for, {keys[2]!r} first, are not in DVC's cache here nor in its remote" in said
    assert commands(said) == ["dvc push", "python -m pipeline join"]
    with monkeypatch.context() as patch:
        patch.chdir(other)
        dvc("remote", "add", "--default", "shared", str(tmp_path / "shared"))
        dvc("push", "--quiet", "data/labels.dvc")
    assert __main__.main(["join"]) == 0
    run("r01", "oracle")
    assert sorted(row["key"] for row in artifacts.load_labels("r01")) == sorted(keys[:3])


def test_without_a_remote_the_other_places_cache_is_one(places: tuple[Path, list[str]], capsys: Capture) -> None:
    other, _ = places
    assert __main__.main(["join"]) == 1
    said = capsys.readouterr().err
    assert commands(said) == ["dvc remote add -d labels FOLDER", "dvc push", "python -m pipeline join"]
    dvc(*commands(said)[0].replace("FOLDER", str(other / ".dvc/cache")).split()[1:])
    assert __main__.main(["join"]) == 0
    run("r01", "oracle")


# what people must do


def test_params_with_marks_of_a_merge_are_for_people(project: Path, capsys: Capture) -> None:
    both(project)
    merge("b", "ours")
    whole = paths.PARAMS.read_text()
    paths.PARAMS.write_text(f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> b\n")
    assert __main__.main(["join"]) == 1
    assert "params.yaml holds the marks of a git merge" in capsys.readouterr().err
    assert __main__.main(["status"]) == 1
    assert "merge" in capsys.readouterr().err
    paths.PARAMS.write_text(whole)
    assert __main__.main(["join"]) == 0


def test_lock_with_marks_of_a_merge_keeps_our_side(project: Path) -> None:
    both(project)
    merge("b", "ours")
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n")
    git("add", "dvc.lock")
    Path("dvc.lock").write_text(
        "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n||||||| base\n=======\nstages: [\n>>>>>>> b\n"
    )
    assert __main__.main(["join"]) == 0
    assert Path("dvc.lock").read_text() == "schema: '2.0'\nstages: {}\n"


@pytest.mark.parametrize("line", ['{"event": "order", "round": "r01", "ke', "", "[1]"])
def test_line_that_is_no_entry_is_for_people(project: Path, line: str, capsys: Capture) -> None:
    both(project)
    whole = paths.LEDGER.read_text()
    paths.LEDGER.write_text(whole + line + "\n")
    assert __main__.main(["join"]) == 1
    said = capsys.readouterr().err
    assert "data/ledger.jsonl: line 5 is neither an entry nor a mark of a merge" in said
    assert commands(said) == ["git diff data/ledger.jsonl", "python -m pipeline join"]
    assert f"\n+{line}\n" in git(*commands(said)[0].split()[1:])
    paths.LEDGER.write_text(whole)
    assert __main__.main(["join"]) == 0


@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n")])
def test_ledger_that_an_editor_saved_is_the_same(project: Path, change: Callable[[bytes], bytes]) -> None:
    keys = both(project)
    book = ledger.load()
    paths.LEDGER.write_bytes(change(paths.LEDGER.read_bytes()))
    paths.LEDGER.chmod(0o444)
    assert ledger.load() == book
    commit("as the editor had it")
    bring("b", "unfinished")
    assert [order.key for order in ledger.load().orders] == keys[:3]


def test_before_anything_is_bought_or_committed_there_is_nothing_to_join(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    repo.initialise(tmp_path)
    assert __main__.main(["join"]) == 0
    assert not paths.LEDGER.exists()


def test_project_in_a_folder_of_a_repository_and_in_a_worktree_of_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = tmp_path / "a team's repository"
    inner = outer / "tools/re gain"
    shutil.copytree(project, inner, ignore=shutil.ignore_patterns(".git"))
    monkeypatch.chdir(outer)
    git("init", "-q", "-b", "main")
    monkeypatch.chdir(inner)
    commit("start")
    keys = both(inner)
    bring("b")
    commit("joined")
    run("r01", "oracle")
    git("worktree", "add", "-q", "-b", "c", str(tmp_path / "tree"))
    monkeypatch.chdir(tmp_path / "tree/tools/re gain")
    with pytest.raises(UserError, match="data/labels lacks 3 labels"):
        label_store.check(ledger.load())
    dvc("remote", "add", "--default", "first", str(inner / ".dvc/cache"))
    assert __main__.main(["join"]) == 0
    assert sorted(path.stem for path in paths.LABELS.iterdir()) == sorted(keys[:3])
