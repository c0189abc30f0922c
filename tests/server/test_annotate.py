"""Sending and collecting against a real Label Studio: every row of what people and servers do."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, ledger, paths, storage
from pipeline.annotators import ANNOTATORS
from pipeline.annotators.contract import Answer, Request
from pipeline.annotators.label_studio import annotator, client, projects
from pipeline.annotators.label_studio.tasks import _with_drafts
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images.classes import CLASS_SETS
from pipeline.images.masks import load_mask
from pipeline.ledger.entries import Delivery, Order
from pipeline.stages import annotate
from tests import fakes, repo
from tests.server.people import Person, colleague, region, regions, text
from tests.server.studio import Studio

NAMES = CLASS_SETS["cityscapes19"].names
PROJECTS = (f"project {number}" for number in range(1000))

Run = Callable[..., None]


@pytest.fixture
def title() -> str:
    return next(PROJECTS)


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, studio: Studio, title: str) -> Run:
    """The stage on a tiny project of its own, with a Label Studio project of its own; r01 has three images."""
    repo.predict("r01")
    repo.predict("r02")
    monkeypatch.setenv(client.KEY, studio.token)
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))

    def stage(name: str = "r01", **changes: object) -> None:
        repo.run(name, **{"annotator": "label_studio", "url": studio.url, "project": title, **changes})

    return stage


def waiting(run: Run, *args: str, **changes: object) -> str:
    with pytest.raises(WaitingForPeople) as caught:
        run(*args, **changes)
    return str(caught.value)


def keys(round_name: str = "r01") -> list[str]:
    return list(artifacts.load_selection(round_name)["key"])


def deliveries() -> dict[str, Delivery]:
    return {delivery.key: delivery for delivery in ledger.load().deliveries}


def label(key: str) -> np.ndarray:
    return load_mask(paths.mask(key))


def sent(key: str, round_name: str = "r01") -> np.ndarray:
    return artifacts.load_prediction(round_name, key)


@pytest.mark.parametrize("name", ANNOTATORS)
def test_every_annotator_answers_what_it_is_asked_once(name: str, run: Run, person: Person, title: str) -> None:
    """The contract of the family."""
    if name == "label_studio":
        waiting(run)
        for task in person.tasks(title).values():
            person.submit(task)
    params, chosen = repo.params(), keys()[:2]
    settings = params.annotate.model_copy(update={"url": person.url, "project": title})
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key", drop=False)
    orders = [Order("r01", key, name, "cityscapes19", 0.1, 10.0, 0.5, "") for key in keys()]
    request = Request("r01", orders[:2], {}, pool, artifacts.load_classes(), settings, "shortfall")
    said = {answer.key: answer for answer in ANNOTATORS[name](request)}
    assert list(said) == chosen
    for answer in said.values():
        assert isinstance(answer, Answer)
        assert answer.mask.shape == fakes.SIZE
        assert answer.mask.dtype == np.uint8
        assert set(np.unique(answer.mask)) <= {*range(19), 255}
        assert answer.minutes > 0
        assert answer.annotator
    known = {key: answer.version for key, answer in said.items()}
    assert list(ANNOTATORS[name](request._replace(known=known))) == []
    [third] = ANNOTATORS[name](request._replace(orders=orders, known=known))
    assert third.key == keys()[2]
    assert list(ANNOTATORS[name](request._replace(orders=[]))) == []


def test_project_and_tasks_are_what_people_need_and_a_second_run_adds_nothing(
    run: Run, person: Person, title: str
) -> None:
    assert waiting(run) == "r01: 0 of 3 labelled; run `dvc repro` again when they are done"
    project = person.project(title)
    assert project["show_instruction"]
    told = text(project["expert_instruction"])
    assert "Round r01: please correct 3 images, which is expected to raise the mIoU by 2.1 points" in told
    assert "Look first at bicycle, motorcycle, train" in told
    assert "road [1]" in told
    tasks = person.tasks(title)
    assert list(tasks) == [f"r01/{key}" for key in keys()]
    for key, task in zip(keys(), tasks.values(), strict=True):
        shown = Image.open(io.BytesIO(person.http.get(task["data"]["image"]).content))
        original = Image.open(artifacts.load_manifest("pool", Path("pool")).set_index("key").at[key, "image"])
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), np.asarray(original.convert("RGB")))
        assert person.http.get(task["data"]["gain"]).content == paths.gain_picture("r01", key).read_bytes()
        [prediction] = task["predictions"]
        assert {r["id"] for r in prediction["result"]} == {f"c{n:02d}" for n in np.unique(sent(key))}
        assert task["annotations"] == []
    first = person.call("GET", f"/api/projects/{project['id']}/next")
    assert first["data"]["key"] == f"r01/{keys()[0]}", "the highest gain comes first"
    before = paths.LEDGER.read_bytes()
    assert waiting(run)
    assert list(person.tasks(title)) == list(tasks)
    assert paths.LEDGER.read_bytes() == before


def test_what_people_make_of_the_prediction_is_the_label(run: Run, person: Person, title: str, studio: Studio) -> None:
    waiting(run)
    tasks = list(person.tasks(title).values())
    untouched, corrected, erased = keys()
    person.submit(tasks[0], seconds=90)
    stroke = np.zeros(fakes.SIZE, bool)
    stroke[2:9, 3:30] = True
    old = tasks[1]["predictions"][0]["result"]
    made = person.submit(tasks[1], [region(stroke, "bus"), *old], seconds=120)
    gone = tasks[2]["predictions"][0]["result"][1:]
    person.submit(tasks[2], gone, seconds=60)
    run()

    np.testing.assert_array_equal(label(untouched), sent(untouched))
    expected = np.where(stroke, NAMES.index("bus"), sent(corrected))
    np.testing.assert_array_equal(label(corrected), expected)
    lacking = NAMES.index(tasks[2]["predictions"][0]["result"][0]["value"]["brushlabels"][0])
    np.testing.assert_array_equal(label(erased), np.where(sent(erased) == lacking, 255, sent(erased)))
    one = deliveries()[corrected]
    assert (one.annotator, one.minutes, one.changed) == (studio.email, 2.0, int((expected != sent(corrected)).sum()))
    assert one.version.startswith(f"{made['id']}@20")
    assert deliveries()[untouched].changed == 0
    assert artifacts.load_labels("r01")[1]["minutes"] == 2.0
    before = paths.LEDGER.read_bytes()
    run()
    assert paths.LEDGER.read_bytes() == before


def test_skipped_image_returns_to_the_pool_and_a_later_label_of_it_counts(
    run: Run, person: Person, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(run)
    tasks = list(person.tasks(title).values())
    first, second, third = keys()
    skipped = person.skip(tasks[0], seconds=60)
    person.submit(tasks[1])
    assert waiting(run) == "r01: 1 of 2 labelled; `dvc repro` now draws others for the skipped images"
    assert not paths.selection("r01").exists()
    assert ledger.load().ordered("r01") == [o for o in ledger.load().orders if o.key in (second, third)]
    assert ledger.load().spent("r01") == (2, 0.5 + 0.5 + 1.0)  # the third at the pace of the second
    assert not paths.mask(first).exists()

    other = next(k for k in artifacts.load_manifest("pool")["key"] if k not in (first, second, third))
    repo.select("r01", [second, third, other])
    repo.predict("r01")
    assert waiting(run) == "r01: 1 of 3 labelled; run `dvc repro` again when they are done"
    assert list(person.tasks(title)) == [f"r01/{key}" for key in (first, second, third, other)]
    person.call("DELETE", f"/api/annotations/{skipped['id']}/")
    person.submit(tasks[0], seconds=30)  # after all
    assert "1 images" not in waiting(run)
    assert ledger.load().withdrawn == []
    assert label(first).shape == fakes.SIZE
    assert f"{first} was changed" in capsys.readouterr().out


def test_hasty_machine_made_and_impossible_annotations_are_held_back_with_a_reason(
    run: Run, person: Person, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(run)
    tasks = list(person.tasks(title).values())
    hasty = person.submit(tasks[0], seconds=1.2)
    machine = person.submit(tasks[1], seconds=None)
    whole = np.ones(fakes.SIZE, bool)
    swallowed = person.submit(tasks[2], [region(whole, "sky")])
    assert waiting(run) == "r01: 0 of 3 labelled, 3 need another look; run `dvc repro` again when they are done"
    said = capsys.readouterr()
    for annotation in (hasty, machine, swallowed):
        assert f"annotation {annotation['id']} of task" in said.out + said.err
    person.update(hasty, ground_truth=True)
    person.update(machine, lead_time=40.0)
    person.update(swallowed, result=[region(whole[: fakes.SIZE[0] // 2], "sky")])
    assert "2 of 3 labelled, 1 needs another look" in waiting(run)
    assert "original_height 12 instead of 24" in capsys.readouterr().out
    person.update(swallowed, result=[{**tasks[2]["predictions"][0]["result"][0], "value": {"format": "rle"}}])
    assert "1 needs another look" in waiting(run)
    bad = tasks[2]["predictions"][0]["result"]
    bad[0]["value"]["brushlabels"] = ["street"]
    person.update(swallowed, result=bad)
    assert "1 needs another look" in waiting(run)
    assert "'street'" in capsys.readouterr().out
    person.update(swallowed, result=tasks[2]["predictions"][0]["result"][1:], ground_truth=True)
    run()


def test_doctor_says_who_we_are_there_and_what_is_wrong(run: Run, studio: Studio, title: str) -> None:
    settings = repo.params().annotate.model_copy(update={"url": studio.url, "project": title})
    told = f"Label Studio at {studio.url}, as {studio.email}: the project '{title}' "
    classes = CLASS_SETS["cityscapes19"]
    assert projects.check(settings, classes) == told + "will be made"
    waiting(run)
    assert projects.check(settings, classes).startswith(told + f"is there, {studio.url}/projects/")
    with pytest.raises(UserError, match="are not those of prepare"):
        projects.check(settings, CLASS_SETS["camvid11"])


def test_draft_is_not_done(run: Run, person: Person, title: str) -> None:
    waiting(run)
    task = next(iter(person.tasks(title).values()))
    person.call("POST", f"/api/tasks/{task['id']}/drafts", json={"result": [], "lead_time": 9.0})
    assert waiting(run).startswith("r01: 0 of 3 labelled")
    settings = repo.params().annotate.model_copy(update={"url": person.url, "project": title})
    assert annotator.progress(settings, ["r01"]) == {"r01": annotator.Progress(3, 1, 0, 0)}


def test_changed_after_import_is_a_correction_and_an_older_database_is_none(
    run: Run, person: Person, title: str, studio: Studio, tmp_path: Path
) -> None:
    waiting(run)
    tasks = list(person.tasks(title).values())
    first, *_ = keys()
    made = [person.submit(task) for task in tasks]
    studio.snapshot(tmp_path / "yesterday")
    stroke = np.zeros(fakes.SIZE, bool)
    stroke[:, 5:9] = True
    person.update(made[0], result=[*tasks[0]["predictions"][0]["result"], region(stroke, "train")], lead_time=90)
    run()
    corrected = np.where(stroke, NAMES.index("train"), sent(first))
    np.testing.assert_array_equal(label(first), corrected)
    assert deliveries()[first].minutes == 1.5

    studio.stop()
    studio.restore(tmp_path / "yesterday")
    studio.start()
    run()
    np.testing.assert_array_equal(label(first), corrected)
    stroke[:, 9:12] = True
    person.update(made[0], result=[*tasks[0]["predictions"][0]["result"], region(stroke, "train")], lead_time=120)
    run()
    np.testing.assert_array_equal(label(first), np.where(stroke, NAMES.index("train"), sent(first)))
    assert ledger.load().spent("r01") == (3, 2.0 + 0.5 + 0.5)
    assert len(ledger.load().deliveries) == 4


def test_what_is_gone_from_the_server_is_sent_again_under_its_key(
    run: Run, person: Person, title: str, studio: Studio, tmp_path: Path
) -> None:
    studio.snapshot(tmp_path / "yesterday")
    waiting(run)
    tasks = list(person.tasks(title).values())
    person.submit(tasks[0])
    assert waiting(run).startswith("r01: 1 of 3")
    person.call("DELETE", f"/api/tasks/{tasks[1]['id']}/")
    waiting(run)
    assert sorted(person.tasks(title)) == sorted(f"r01/{key}" for key in keys())
    studio.stop()
    studio.restore(tmp_path / "yesterday")
    studio.start()
    assert waiting(run).startswith("r01: 1 of 3")
    assert sorted(person.tasks(title)) == sorted(f"r01/{key}" for key in keys()[1:]), "what is here is not sent again"
    person.call("DELETE", f"/api/projects/{person.project(title)['id']}/")
    assert waiting(run).startswith("r01: 1 of 3")
    for task in person.tasks(title).values():
        person.submit(task)
    run()
    assert len(ledger.load().deliveries) == len(ledger.load().orders) == 3


def test_task_imported_twice_by_hand_is_labelled_once(run: Run, person: Person, title: str) -> None:
    waiting(run)
    project = person.project(title)["id"]
    tasks = list(person.tasks(title).values())
    copies = [{"data": task["data"], "meta": task["meta"]} for task in tasks]
    person.call("POST", f"/api/projects/{project}/import", json=copies)
    waiting(run)
    assert [task["id"] for task in person.tasks(title).values()] == [task["id"] for task in tasks]
    person.call("POST", f"/api/projects/{project}/import", json=copies[:1])
    newest = max(
        person.call("GET", "/api/tasks", params={"project": project, "page_size": 100})["tasks"], key=lambda t: t["id"]
    )
    person.submit(newest, regions(sent(keys()[0]), NAMES))
    waiting(run)
    assert person.tasks(title)[f"r01/{keys()[0]}"]["id"] == newest["id"], "the copy that somebody has worked on stays"
    np.testing.assert_array_equal(label(keys()[0]), sent(keys()[0]))


def test_copy_that_somebody_labels_while_we_look_is_not_deleted(
    run: Run, person: Person, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(run)
    project = person.project(title)["id"]
    tasks = list(person.tasks(title).values())
    copies = [{"data": task["data"], "meta": task["meta"]} for task in tasks]
    person.call("POST", f"/api/projects/{project}/import", json=copies)
    listed = person.call("GET", "/api/tasks", params={"project": project, "page_size": 100})["tasks"]
    labelled, drafted, _ = sorted(
        (task for task in listed if task["id"] > tasks[-1]["id"]), key=lambda task: task["id"]
    )
    ask = _with_drafts

    def in_between(*about: object) -> set[int]:  # after the list of tasks has been read
        found = ask(*about)
        person.submit(labelled, regions(sent(keys()[0]), NAMES))
        person.call("POST", f"/api/tasks/{drafted['id']}/drafts", json={"result": [], "lead_time": 9.0})
        return found

    monkeypatch.setattr("pipeline.annotators.label_studio.tasks._with_drafts", in_between)
    waiting(run)
    monkeypatch.setattr("pipeline.annotators.label_studio.tasks._with_drafts", ask)
    waiting(run)
    np.testing.assert_array_equal(label(keys()[0]), sent(keys()[0]))
    left = person.tasks(title)
    assert [left[f"r01/{key}"]["id"] for key in keys()] == [labelled["id"], drafted["id"], tasks[2]["id"]]


def test_two_rounds_and_two_clones_share_a_project(run: Run, person: Person, title: str) -> None:
    waiting(run)
    for task in person.tasks(title).values():
        person.submit(task)
    run()
    waiting(run, "r02")
    assert len(person.tasks(title)) == 3 + 2
    mine = paths.LEDGER.read_bytes()
    paths.LEDGER.unlink()  # another clone, before it has pulled
    for key in keys():
        paths.mask(key).unlink()
    run()
    waiting(run, "r02")
    assert len(person.tasks(title)) == 3 + 2
    versions = {delivery.key: delivery.version for delivery in ledger.load().deliveries}
    paths.LEDGER.write_bytes(mine)
    assert versions == {delivery.key: delivery.version for delivery in ledger.load().deliveries}


def test_labels_edited_by_hand_and_tasks_of_another_image_are_refused(run: Run, person: Person, title: str) -> None:
    waiting(run)
    project = person.project(title)
    edited = project["label_config"].replace('value="road"', 'value="street"')
    person.call("PATCH", f"/api/projects/{project['id']}", json={"label_config": edited})
    with pytest.raises(UserError, match=r"lacking: 'road'; unknown: 'street'.*Settings > Labeling Interface"):
        run()
    recoloured = project["label_config"].replace('opacity="0.6"', 'opacity="0.3"')
    person.call("PATCH", f"/api/projects/{project['id']}", json={"label_config": recoloured})
    waiting(run)
    pool = artifacts.load_manifest("pool")
    artifacts.save_manifest("pool", pool.assign(sha256="cd" * 32))
    with pytest.raises(UserError, match=r"shows another image: give annotate.project a name of its own"):
        run()


def test_several_annotators(run: Run, person: Person, title: str, studio: Studio) -> None:
    waiting(run, annotators_per_image=2)
    other, _ = colleague(studio, "second@example.org")
    tasks = list(person.tasks(title).values())
    first, _, third = keys()
    person.submit(tasks[0])
    person.submit(tasks[0])  # two by one person are one
    assert waiting(run, annotators_per_image=2).startswith("r01: 0 of 3")
    stroke = np.zeros(fakes.SIZE, bool)
    stroke[:, :8] = True
    other.submit(tasks[0], [*tasks[0]["predictions"][0]["result"], region(stroke, "sky")], seconds=60)
    person.submit(tasks[1])
    other.submit(tasks[1], [*tasks[1]["predictions"][0]["result"], region(stroke, "sky")])
    star = person.submit(tasks[2], ground_truth=True)
    run(annotators_per_image=2)
    differ = stroke & (sent(first) != NAMES.index("sky"))
    np.testing.assert_array_equal(label(first), np.where(stroke, NAMES.index("sky"), sent(first)))
    one = deliveries()[first]
    assert (one.annotator, one.minutes) == ("second@example.org", 2.0)
    assert one.agreement == pytest.approx(1 - differ.sum() / differ.size)
    assert deliveries()[third].version.startswith(f"{star['id']}@")

    paths.LEDGER.unlink()
    for key in keys():
        paths.mask(key).unlink()
    run(annotators_per_image=2, several="majority")
    np.testing.assert_array_equal(label(first), np.where(differ, 255, sent(first)))
    assert deliveries()[first].annotator == f"{studio.email}, second@example.org"
    other.http.close()


def test_keys_of_either_kind_work_and_the_others_say_what_they_are(
    run: Run, studio: Studio, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, personal = colleague(studio, "third@example.org")
    other.http.close()
    monkeypatch.setenv(client.KEY, personal)
    waiting(run)
    access = httpx.post(f"{studio.url}/api/token/refresh/", json={"refresh": personal}, timeout=60).json()["access"]
    for key, sentence in {
        "": "LABEL_STUDIO_API_KEY is not set: copy a token from .*/user/account",
        "a b": "has characters that no key has",
        "1" * 40: "refuses the legacy token in LABEL_STUDIO_API_KEY .*: copy it anew",
        access: "holds a token of type 'access', which ends after five minutes",
        "a.b.c": "looks like a personal access token but cannot be read",
        personal[:-4] + "AAAA": "refuses the personal access token",
    }.items():
        monkeypatch.setenv(client.KEY, key)
        with pytest.raises(UserError, match=sentence) as caught:
            run()
        assert not key or key not in str(caught.value), "a key is never shown"
    monkeypatch.setenv(client.KEY, studio.token)
    person.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})
    try:
        with pytest.raises(UserError, match=r"legacy token.*take a personal access token instead"):
            run()
        monkeypatch.setenv(client.KEY, personal)
        waiting(run)
    finally:
        back = client.Client(studio.url, personal)
        back.send("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
        back.close()


def test_rotated_pictures_are_served_upright(run: Run, person: Person, title: str) -> None:
    pool = artifacts.load_manifest("pool").set_index("key", drop=False)
    key = keys()[0]
    rows, columns = np.indices(fakes.SIZE[::-1])
    turned = Image.fromarray(np.stack([7 * rows, 10 * columns, 0 * rows], -1).astype(np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned.save("pool/turned.jpg", quality=95, exif=exif)
    pool.loc[key, ["image", "sha256"]] = "turned.jpg", storage.sha256(Path("pool/turned.jpg"))
    artifacts.save_manifest("pool", pool.reset_index(drop=True))
    waiting(run)
    content = person.http.get(person.tasks(title)[f"r01/{key}"]["data"]["image"]).content
    shown = Image.open(io.BytesIO(content))
    assert not shown.getexif()
    upright = np.asarray(turned.transpose(Image.Transpose.ROTATE_270).convert("RGB")).astype(int)
    assert shown.size == fakes.SIZE[::-1]
    assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - upright).mean() < 4  # of JPEG


def test_pictures_from_local_files_and_from_addresses(run: Run, person: Person, title: str, studio: Studio) -> None:
    waiting(run, images="local_files", media=str(studio.media))
    tasks = person.tasks(title)
    for key in keys():
        data = tasks[f"r01/{key}"]["data"]
        original = Path(artifacts.load_manifest("pool", Path("pool")).set_index("key").at[key, "image"])
        assert person.http.get(data["image"]).content == original.read_bytes()
        assert person.http.get(data["gain"]).content == paths.gain_picture("r01", key).read_bytes()
    person.call("DELETE", f"/api/projects/{person.project(title)['id']}/")
    with pytest.raises(UserError, match=r"annotate\.media is 'nowhere', which is no folder"):
        run(images="local_files", media="nowhere")
    Path("elsewhere").mkdir()
    with pytest.raises(UserError, match="must be a subdirectory of LOCAL_FILES_DOCUMENT_ROOT"):
        run(images="local_files", media="elsewhere")
    with pytest.raises(UserError, match=r"404\), so it is not sent .*: connect a source storage with that bucket"):
        run(images="s3://bucket/pool/{key}.png")
    with pytest.raises(UserError, match=r"the image of .* answers with 404\), so it is not sent"):
        run(images="/data/local-files/?d=nowhere/{key}.png")
    assert person.project(title)["task_number"] == 0


def test_names_that_an_address_would_read_otherwise_are_served(
    run: Run, person: Person, title: str, studio: Studio
) -> None:
    odd = dict(zip(keys(), ["a#1 %41?x=&y", 'it\'s ü+\u6771;"q"', "..a%2Fb"], strict=True))
    pool = artifacts.load_manifest("pool").replace({"key": odd})
    artifacts.save_manifest("pool", pool)
    repo.select("r01", list(odd.values()))
    repo.predict("r01")
    waiting(run, images="local_files", media=str(studio.media))
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    for key in odd.values():
        data = person.tasks(title)[f"r01/{key}"]["data"]
        assert person.http.get(data["image"]).content == Path(pool.at[key, "image"]).read_bytes()
        assert person.http.get(data["gain"]).content == paths.gain_picture("r01", key).read_bytes()


def stream(person: Person, title: str) -> dict[str, Any]:
    """What the browser is given that pressed Label All Tasks."""
    number = person.project(title)["id"]
    body = {"project": str(number)}
    return dict(person.call("POST", "/api/dm/actions", params={"id": "next_task", "project": number}, json=body))


def test_every_run_sets_what_its_round_needs_and_says_what_was_changed(
    run: Run, person: Person, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(run)
    project = person.project(title)
    capsys.readouterr()
    waiting(run)
    assert "is set to" not in capsys.readouterr().out
    changes = {
        "sampling": "Uniform sampling",
        "show_collab_predictions": False,
        "skip_queue": "REQUEUE_FOR_ME",
        "enable_empty_annotation": True,
        "show_instruction": False,
        "maximum_annotations": 3,
        "expert_instruction": "Please hurry.",
    }
    person.call("PATCH", f"/api/projects/{project['id']}", json=changes)
    settings = repo.params().annotate.model_copy(update={"url": person.url, "project": title})
    doubts = projects.concerns(settings, CLASS_SETS["cityscapes19"])
    assert len(doubts) == 7
    assert f"the project '{title}' has sampling 'Uniform sampling' instead of 'Uncertainty sampling'" in doubts[1]
    assert f"gives out 'r01/{keys()[0]}' without the model's own labels" in " ".join(doubts)
    waiting(run)
    told = capsys.readouterr().out
    for name in changes:
        assert name == "expert_instruction" or f"{title}: {name} was {changes[name]!r} in Label Studio" in told
    assert f"{title}: the instruction was edited in Label Studio" in told
    assert "warning" not in told
    there = person.project(title)
    assert {name: there[name] for name in changes} == {name: project[name] for name in changes}
    assert projects.concerns(settings, CLASS_SETS["cityscapes19"]) == []
    first = stream(person, title)
    assert (first["data"]["key"], len(first["predictions"])) == (f"r01/{keys()[0]}", 1)


def test_what_was_sent_as_before_r01_goes_on_and_what_is_left_comes_after_the_next_round(
    run: Run, person: Person, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(run)
    project = person.project(title)["id"]
    for task in person.tasks(title).values():  # as an older pipeline sent it
        [prediction] = task["predictions"]
        body = {"model_version": "before r01", "task": task["id"], "score": 0.0}
        person.call("PATCH", f"/api/predictions/{prediction['id']}/", json=body)
    person.call("PATCH", f"/api/projects/{project}", json={"model_version": "before r01"})
    first, *_ = tasks = list(person.tasks(title).values())
    person.submit(first)
    assert waiting(run) == "r01: 1 of 3 labelled; run `dvc repro` again when they are done"
    assert "model_version was 'before r01' in Label Studio, and is set to 'Regain'" in capsys.readouterr().out
    assert len(stream(person, title)["predictions"]) == 1
    person.submit(tasks[1])

    waiting(run, "r02")
    assert "warning" not in capsys.readouterr().out
    for name in (*[f"r02/{key}" for key in keys("r02")], f"r01/{keys()[2]}"):
        given = stream(person, title)
        assert (given["data"]["key"], len(given["predictions"])) == (name, 1)
        person.submit(person.tasks(title)[name])
    run()
    run("r02")


def test_stream_that_does_not_give_what_is_promised_is_warned_of_once(
    run: Run, person: Person, title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(run)
    last = person.tasks(title)[f"r01/{keys()[2]}"]
    body = {"score": -5.0, "task": last["id"]}
    person.call("PATCH", f"/api/predictions/{last['predictions'][0]['id']}/", json=body)
    capsys.readouterr()
    waiting(run)
    [warning] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"gives out 'r01/{keys()[2]}' first, though 'r01/{keys()[0]}' is worth most" in warning
    tasks = [person.tasks(title)[f"r01/{key}"] for key in (keys()[1], keys()[0], keys()[2])]
    monkeypatch.setattr(annotate.time, "sleep", lambda seconds: seconds >= 1 and person.submit(tasks.pop(0)))
    run(mode="wait")  # three polls, before each of which somebody labels one
    assert not tasks
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == [warning]


def test_answers_of_controls_that_the_team_added_are_passed_over_and_named(
    run: Run, person: Person, title: str
) -> None:
    waiting(run)
    project = person.project(title)
    more = """
        <Choices name="quality" toName="image"><Choice value="sharp"/><Choice value="blurred"/></Choices>
        <BrushLabels name="doubt" toName="image"><Label value="road" hotkey="—"/></BrushLabels></View>"""
    config = project["label_config"].removesuffix("</View>") + more
    person.call("PATCH", f"/api/projects/{project['id']}", json={"label_config": config})
    settings = repo.params().annotate.model_copy(update={"url": person.url, "project": title})
    assert projects.concerns(settings, CLASS_SETS["cityscapes19"]) == [
        f"the project '{title}' asks for more than labels ('quality', 'doubt'): those answers are passed over"
    ]
    said = {"id": "q", "type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["sharp"]}}
    everywhere = region(np.ones(fakes.SIZE, bool), "road") | {"from_name": "doubt"}
    for task in person.tasks(title).values():
        person.submit(task, [said, *task["predictions"][0]["result"], everywhere])
    run()
    for key in keys():
        np.testing.assert_array_equal(label(key), sent(key))


def test_server_that_is_down_is_a_sentence_and_in_mode_wait_waited_for(
    run: Run, studio: Studio, person: Person, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.stop()
    with pytest.raises(UserError, match=rf"Label Studio does not answer at {studio.url} .*what is ordered stays"):
        run()
    assert len(ledger.load().orders) == 3
    calls, short = [], time.sleep

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 2:
            studio.start()
        if len(calls) == 3:
            for task in person.tasks(title).values():
                person.submit(task)

    monkeypatch.setattr(annotate.time, "sleep", lambda seconds: sleep(seconds) if seconds >= 1 else short(seconds))
    run(mode="wait")
    assert calls == [60.0, 120.0, 30.0]
    assert len(ledger.load().deliveries) == 3
    studio.stop()
    run()  # all is here: the server is not needed
    studio.start()
