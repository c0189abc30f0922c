"""A second look in a real Label Studio: what is listed, and that a correction made there is one, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import ledger, paths
from pipeline.commands import review
from pipeline.errors import UserError
from pipeline.evaluation import label_quality, suspects
from pipeline.params import Params
from tests import fakes, project, repo
from tests.forks import Forks
from tests.server import test_annotate
from tests.server.people import Person, region
from tests.server.studio import Studio
from tests.server.test_annotate import NAMES, Run, deliveries, keys, label, sent, waiting

run = test_annotate.run
PROJECTS = (f"second look {number}" for number in range(1000))


@pytest.fixture
def title() -> str:
    return next(PROJECTS)


def audited(order: list[str], round_name: str = "r01") -> None:
    """What the audit would write of a round's labels, the first of `order` the most suspect."""
    found = []
    suspects.clear(round_name)
    for rank, key in enumerate(order):
        given = np.zeros(fakes.SIZE, np.uint8)
        claim = (np.arange(given.size) < 40 * (len(order) - rank)).astype(np.uint8).reshape(given.shape)
        own, best = np.full(given.shape, 0.1 * (rank + 1), np.float32), np.full(given.shape, 0.8, np.float32)
        judged = label_quality.judge(19, given, claim, own, best)
        found.append(
            suspects.write(
                round_name, key, deliveries()[key].sha256, judged, judged.contradicted, given.shape, repo.CLASSES
            )
        )
    suspects.save(round_name, found)


@pytest.fixture
def params(run: Run, studio: Studio, title: str) -> Params:
    return repo.params(annotate={"annotator": "label_studio", "url": studio.url, "project": title})


def listed(person: Person, title: str) -> list[str]:
    """Keys of the tasks that the tab lists."""
    number = person.project(title)["id"]
    views = person.call("GET", "/api/dm/views", params={"project": number})
    [view] = [view for view in views if view["data"]["title"] == "Second look r01"]
    tasks = person.call("GET", "/api/tasks", params={"project": number, "view": view["id"], "page_size": 100})
    assert len(tasks["tasks"]) == tasks["total"]
    return [task["data"]["key"] for task in tasks["tasks"]]


def test_the_worst_are_listed_and_what_is_updated_there_is_a_correction_and_nothing_else(
    run: Run, params: Params, person: Person, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(run)
    tasks = person.tasks(title)
    made = {key: person.submit(tasks[f"r01/{key}"]) for key in keys()}
    run()
    best, worst, second = keys()
    audited([worst, second, best])
    before, masks = paths.LEDGER.read_text(), {key: label(key) for key in keys()}
    review.run(params, round_name=None, worst=2, keys=())
    said = capsys.readouterr().out
    assert said.index(worst) < said.index(second)
    assert best not in said
    assert f"{person.url}/projects/{person.project(title)['id']}/data?tab=" in said
    assert "lists 2 tasks" in said
    assert sorted(listed(person, title)) == sorted(f"r01/{key}" for key in (worst, second))
    run()
    assert paths.LEDGER.read_text() == before  # to look again is no purchase, and changes no label

    stroke = np.zeros(fakes.SIZE, bool)
    stroke[:, 5:9] = True
    strokes = [*tasks[f"r01/{worst}"]["predictions"][0]["result"], region(stroke, "train")]
    person.update(made[worst], result=strokes, lead_time=90)
    run()
    after = paths.LEDGER.read_text()
    assert after.startswith(before)
    assert after.count("\n") == before.count("\n") + 1
    old, new = [one for one in ledger.load().deliveries if one.key == worst]
    assert old.version != new.version
    assert new.version.startswith(f"{made[worst]['id']}@")
    np.testing.assert_array_equal(label(worst), np.where(stroke, NAMES.index("train"), sent(worst)))
    for key in (best, second):
        np.testing.assert_array_equal(label(key), masks[key])
    assert ledger.load().spent("r01") == (3, 0.5 + 1.5 + 0.5)  # 90 seconds in all, of which 30 were counted before
    run()
    assert paths.LEDGER.read_text() == after

    capsys.readouterr()
    person.update(made[second], ground_truth=True)
    review.run(params, round_name="r01", worst=None, keys=())
    said = capsys.readouterr().out
    assert listed(person, title) == [f"r01/{best}"]  # one is corrected since the audit, one is right
    assert "1 label passed over, marked as ground truth" in said
    review.run(params, round_name="r01", worst=None, keys=[second, worst])
    assert sorted(listed(person, title)) == sorted(f"r01/{key}" for key in (worst, second))


def test_what_cannot_be_looked_at_again_is_a_sentence(run: Run, params: Params, person: Person, title: str) -> None:
    waiting(run)
    for task in person.tasks(title).values():
        person.submit(task)
    run()

    def refused(match: str, **given: Any) -> None:
        with pytest.raises(UserError, match=match):
            review.run(given.pop("params", params), **{"round_name": None, "worst": None, "keys": (), **given})

    refused("no round's labels are audited yet, .*`dvc repro`")
    refused("the labels of r02 are not audited yet: run `dvc repro audit@r02`", round_name="r02")
    refused("unknown round 'r9': the budget table in params.yaml has r01, r02", round_name="r9")
    audited(keys())
    refused("--worst is 0", worst=0)
    refused("give one of them", worst=3, keys=keys()[:1])
    refused(
        f"r01 has no label {keys()[0] + 'x'!r} that was audited: did you mean {keys()[0]!r}", keys=[keys()[0] + "x"]
    )
    elsewhere = params.annotate.model_copy(update={"project": "Nobody's"})
    refused('there is no project "Nobody\'s"', params=params.model_copy(update={"annotate": elsewhere}))
    for task in person.tasks(title).values():
        person.call("DELETE", f"/api/tasks/{task['id']}/")
    refused("has no task of r01 to look at again .0 marked as ground truth, 3 without an annotation there.")


@pytest.mark.dvc
def test_commands_that_it_names_take_the_correction_and_go_on_from_it(
    tmp_path: Path, studio: Studio, person: Person, forks: Forks
) -> None:
    of = project.make(tmp_path / "people", forks=forks)
    of.edit("annotator: oracle", f"annotator: label_studio, url: '{studio.url}', project: Look again")
    of = of._replace(variables={"LABEL_STUDIO_API_KEY": studio.token})
    assert of.dvc("repro").status != 0
    tasks = person.tasks("Look again")
    made = {name: person.submit(task) for name, task in tasks.items()}
    of.repro()
    said = of.pipeline("review", "--worst", "1")
    assert said.status == 0, said.output
    assert of.repro().ran == []  # nothing has changed for DVC, whatever people do
    [name] = [name for name in made if f" {name.removeprefix('r01/')}: quality" in said.output]
    size = (32, 64)
    stroke = np.zeros(size, bool)
    stroke[:, 20:40] = True
    person.update(made[name], result=[*tasks[name]["predictions"][0]["result"], region(stroke, "train")], lead_time=60)
    before = of.ledger()
    first, second = repo.commands(said.output)
    assert [first, second] == ["dvc repro -s -f annotate@r01", "dvc repro"]
    taken = of.dvc(*first.split()[1:])
    assert taken.status == 0
    assert "taken as corrected" in taken.output
    [more] = of.ledger()[len(before) :]
    assert (more["event"], more["key"], more["minutes"]) == ("delivery", name.removeprefix("r01/"), 1.0)
    assert {"audit@r01", "tune@r01", "report"} <= set(of.repro().ran)
    assert of.repro().ran == []
