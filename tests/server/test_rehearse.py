"""The simulated annotator at a real Label Studio, through its official SDK; the answers are read with the SDK too."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import __main__, artifacts, datasets, ledger, paths
from pipeline.annotators.label_studio import client
from pipeline.commands import rehearse
from pipeline.commands.rehearse import Noise
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images import reading
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.masks import load_mask
from pipeline.params import Params
from pipeline.stages import annotate
from tests import fakes, repo
from tests.server.people import Person, colleague
from tests.server.studio import Studio, free_port

NAMES = CLASS_SETS["cityscapes19"].names
EXACT = Noise(jitter=0.0, swaps=0.0, skips=0.0, seconds=90.0, seed=1)
TITLES = (f"rehearsal {number}" for number in itertools.count())

Collect = Callable[[], None]


@pytest.fixture
def settings(project: Path, monkeypatch: pytest.MonkeyPatch, studio: Studio) -> Params:
    """A tiny project whose r01 asks for three images, and a Label Studio project's name of its own."""
    monkeypatch.setenv(client.KEY, studio.token)
    repo.predict("r01")
    return repo.params(annotate={"annotator": "label_studio", "url": studio.url, "project": next(TITLES)})


@pytest.fixture
def collect(settings: Params) -> Collect:
    """The stage `annotate` of r01, which has sent its images by now."""

    def stage() -> None:
        own = {
            "roots": settings.roots,
            "select": settings.select,
            "score": settings.score,
            "annotate": settings.annotate,
        }
        annotate.run("r01", settings.budget["r01"], **own)

    with pytest.raises(WaitingForPeople):
        stage()
    return stage


def keys() -> list[str]:
    return list(artifacts.load_selection("r01")["key"])


def truth(key: str) -> np.ndarray:
    """The known label, read without what is under test."""
    table = datasets.table("cityscapes", Path("pool"), CLASS_SETS["cityscapes19"])
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    return reading.read_mask(Path(pool.at[key, "mask"]), table)


def decoded(result: list[dict]) -> np.ndarray:
    """What the regions of an annotation show, by the SDK's decoder; none may overlap."""
    from label_studio_sdk.converter.brush import decode_rle

    mask = np.full(fakes.SIZE, IGNORE, np.uint8)
    for region in result:
        area = decode_rle(region["value"]["rle"]).reshape(*fakes.SIZE, 4)[:, :, 3]
        assert set(np.unique(area)) <= {0, 255}
        assert (mask[area == 255] == IGNORE).all()
        mask[area == 255] = NAMES.index(region["value"]["brushlabels"][0])
    return mask


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_exact_answers_are_the_known_labels_and_nothing_is_answered_twice(
    settings: Params, collect: Collect, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    title = settings.annotate.project
    before = person.tasks(title)
    # A class that was not sent needs a region with an id of its own.
    first = next(iter(before.values()))
    number = first["predictions"][0]["id"]
    shown = first["predictions"][0]["result"]
    unsent = shown[0]["value"]["brushlabels"][0]
    assert NAMES.index(unsent) in truth(keys()[0])
    person.call("PATCH", f"/api/predictions/{number}/", json={"result": shown[1:], "task": first["id"]})

    rehearse.run(settings, EXACT)
    assert said(capsys) == f"{title}: answered 3, skipped 0, left 0 that show no image of this pool"
    tasks = person.tasks(title)
    assert list(tasks) == list(before)
    for key, task in zip(keys(), tasks.values(), strict=True):
        [annotation] = task["annotations"]
        assert not annotation["was_cancelled"]
        assert 10 < annotation["lead_time"] < 900
        np.testing.assert_array_equal(decoded(annotation["result"]), truth(key))
        sent = {r["value"]["brushlabels"][0]: r["id"] for r in task["predictions"][0]["result"]}
        ids = {r["value"]["brushlabels"][0]: r["id"] for r in annotation["result"]}
        assert len(set(ids.values())) == len(ids)
        for name, own in ids.items():
            assert own == sent[name] if name in sent else own not in sent.values()
    assert unsent in {r["value"]["brushlabels"][0] for r in tasks[f"r01/{keys()[0]}"]["annotations"][0]["result"]}

    rehearse.run(settings, EXACT._replace(seed=2))
    assert said(capsys) == f"{title}: answered 0, skipped 0, left 0 that show no image of this pool"
    assert person.tasks(title) == tasks

    collect()
    for key in keys():
        np.testing.assert_array_equal(load_mask(paths.mask(key)), truth(key))
    minutes = {delivery.key: delivery.minutes for delivery in ledger.load().deliveries}
    seconds = {key: task["annotations"][0]["lead_time"] for key, task in zip(keys(), tasks.values(), strict=True)}
    assert minutes == {key: pytest.approx(value / 60) for key, value in seconds.items()}


def test_errors_and_skips_arrive_as_they_were_made(
    settings: Params, collect: Collect, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = next(
        noise
        for noise in (Noise(jitter=1.0, swaps=0.1, skips=0.5, seconds=60.0, seed=seed) for seed in range(100))
        if sum(rehearse.annotated(truth(key), noise, f"r01/{key}").skipped for key in keys()) == 1
    )
    rehearse.run(settings, noise)
    title = settings.annotate.project
    assert said(capsys) == f"{title}: answered 2, skipped 1, left 0 that show no image of this pool"
    tasks = person.tasks(title)
    for key in keys():
        work, task = rehearse.annotated(truth(key), noise, f"r01/{key}"), tasks[f"r01/{key}"]
        [annotation] = task["annotations"]
        assert annotation["was_cancelled"] == work.skipped
        assert annotation["lead_time"] == pytest.approx(work.seconds)
        if work.skipped:  # the browser sends the whole prediction along
            assert annotation["result"] == task["predictions"][0]["result"]
        else:
            assert (work.mask != truth(key)).any()
            np.testing.assert_array_equal(decoded(annotation["result"]), work.mask)
    rehearse.run(settings, noise._replace(skips=0.0))
    assert said(capsys) == f"{title}: answered 0, skipped 0, left 0 that show no image of this pool"
    assert person.tasks(title) == tasks
    with pytest.raises(WaitingForPeople, match="r01: 2 of 2 labelled; `dvc repro` now draws others"):
        collect()


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # the SDK's use of pydantic
def test_what_is_done_or_not_ours_is_left_alone_also_with_a_personal_token(
    settings: Params,
    collect: Collect,
    person: Person,
    studio: Studio,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    title = settings.annotate.project
    project = person.project(title)["id"]
    done, skipped, untouched = person.tasks(title).values()
    person.submit(done)
    person.skip(skipped)
    data = untouched["data"]
    strangers = [{**data, "sha256": "cd" * 32}, {**data, "key": "r01/nothing"}, {"image": data["image"]}]
    body = [{"data": stranger} for stranger in strangers]
    person.call("POST", f"/api/projects/{project}/import", json=body)
    somebody, token = colleague(studio, "robot@example.com")
    somebody.http.close()
    monkeypatch.setenv(client.KEY, token)
    rehearse.run(settings, EXACT)
    assert said(capsys) == f"{title}: answered 1, skipped 0, left 3 that show no image of this pool"
    listed = person.call("GET", "/api/tasks", params={"project": project, "fields": "all"})["tasks"]
    counts = [(task["total_annotations"], task["cancelled_annotations"]) for task in listed]
    assert sorted(counts) == [(0, 0)] * 3 + [(0, 1)] + [(1, 0)] * 2


def test_image_without_a_known_label_is_named(settings: Params, collect: Collect) -> None:
    pool = artifacts.load_manifest("pool")
    artifacts.save_manifest("pool", pool.assign(mask=""))
    with pytest.raises(UserError, match=f"no label for '{keys()[0]}', since .* has no mask .*: rehearse on a pool"):
        rehearse.run(settings, EXACT)


def test_stream_without_predictions_or_with_strangers_first_ends_the_rehearsal(
    settings: Params, collect: Collect, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    title = settings.annotate.project
    project = person.project(title)["id"]
    person.call("PATCH", f"/api/projects/{project}", json={"show_collab_predictions": False})
    with pytest.raises(UserError, match=r"label stream gives 'r01/.*' without the model's own labels: run `dvc repro"):
        rehearse.run(settings, EXACT)
    with pytest.raises(WaitingForPeople):
        collect()  # sets it back
    taken = person.call("POST", "/api/dm/actions", params={"id": "next_task", "project": project}, json={})
    person.submit(person.tasks(title)[taken["data"]["key"]])  # which was locked above
    prediction = {"model_version": "Regain", "score": -9.0, "result": []}
    stranger = {"data": {"image": taken["data"]["image"]}, "predictions": [prediction]}
    person.call("POST", f"/api/projects/{project}/import", json=[stranger])
    with pytest.raises(UserError, match=r"shows no image of this pool, before 'r01/.*' \(2 in all\): rehearse in a"):
        rehearse.run(settings, EXACT)
    with pytest.raises(WaitingForPeople):
        collect()
    assert "is there other work in it?" in capsys.readouterr().out


def test_no_project_a_wrong_key_and_no_server_are_sentences(
    settings: Params, studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    title = settings.annotate.project
    with pytest.raises(UserError, match=f"there is no project '{title}' at {studio.url}: run `dvc repro`"):
        rehearse.run(settings, EXACT)
    monkeypatch.setenv(client.KEY, "0" * 40)
    with pytest.raises(UserError, match=rf"{studio.url} answers with 401 \(Invalid token.*\): look at {client.KEY}"):
        rehearse.run(settings, EXACT)
    nobody = f"http://127.0.0.1:{free_port()}"
    text = repo.PARAMS.replace("{annotator: oracle,", f"{{annotator: label_studio, url: '{nobody}',")
    paths.PARAMS.write_text(text)
    assert __main__.main(["rehearse"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rehearse: Label Studio does not answer at {nobody} (ConnectError: ")
    assert error.count("\n") == 1
