"""Faults between us and Label Studio lose nothing, double nothing, and give nothing to another image."""

import itertools
import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline import paths
from pipeline.images.masks import save_mask
from tests.server import faults
from tests.server.proxy import KINDS, Fault
from tests.server.region_trial import RegionTrial
from tests.server.trial import BY_ITSELF, KILLED, SENTENCE, WRONG, Bench, Trial, bench


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("faults"), seed=0) as ready:
        yield ready


@pytest.fixture(scope="module")
def quiet(made: Bench) -> Trial:
    """Undisturbed."""
    trial = Trial(made, {}).play("correct")
    assert not any(trial.found.values()), trial.found
    assert trial.accepted == 5
    return trial


def test_no_kind_of_fault_loses_doubles_or_misassigns(made: Bench, quiet: Trial) -> None:
    aims = {
        "send": "POST /api/projects/N/import",  # once for the pictures, then for the tasks
        "collect": "GET /api/tasks/N",
        "replace": "POST /api/projects/N/import",
    }
    places = {phase: max(n for n, r in enumerate(quiet.requests[phase], 1) if r == aims[phase]) for phase in aims}
    # The third, which takes longest, is for those that leave open what the server has.
    kinds = {"send": KINDS, "collect": KINDS, "replace": ("carried out, answer lost", "carried out after we gave up")}
    planned = [Fault(kind, phase, n) for phase, n in places.items() for kind in kinds[phase]]
    done = faults.study(made, iter(planned), len(planned))
    assert {hit.fault for hit in done.hits} == set(planned)
    assert all(hit.request == aims[hit.fault.phase] for hit in done.hits)
    assert done.findings == {name: [] for name in WRONG}
    outcomes = {(hit.fault.kind, hit.fault.phase): hit.outcome for hit in done.hits}
    assert outcomes["carried out, answer lost", "send"] == outcomes["carried out, answer lost", "replace"] == BY_ITSELF
    assert outcomes["401", "send"] == SENTENCE
    assert outcomes["we are killed", "send"] == outcomes["we are killed", "collect"] == KILLED


def test_no_fault_loses_doubles_or_misassigns_answers_for_regions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A few of them, in all phases; benchmarks/faults.py --unit region has many."""
    with bench(tmp_path_factory.mktemp("regions"), seed=0, trial=RegionTrial) as made:
        quiet = RegionTrial(made, {}).play("next round")
        assert not any(quiet.found.values()), quiet.found
        assert quiet.accepted == 7
        sending, reading = "POST /api/projects/N/import", "GET /api/tasks/N"
        planned = [
            Fault(kind, phase, max(n for n, request in enumerate(quiet.requests[phase], 1) if request == aim))
            for kind, phase, aim in (
                ("carried out, answer lost", "send", sending),
                ("we are killed", "collect", reading),
                ("500, 502, 503 or 429", "replace", sending),
                ("we are killed", "correct", reading),
                ("carried out, answer lost", "next round", sending),
            )
        ]
        # Again for what has not come about: an earlier fault of the same trial may spare a later request.
        done = faults.study(made, itertools.cycle(planned), len(planned))
        assert {hit.fault for hit in done.hits} <= set(planned)
        assert done.findings == {name: [] for name in WRONG}

        # The study sees what it looks for.
        trial = quiet
        first, *_ = trial.keys
        other = trial.keys[5]
        shutil.copy(trial.folder / paths.mask(other), trial.folder / paths.mask(first))
        trial.check()
        assert any(f"{first} has a mask that was not drawn for it" in what for what in trial.found["misassigned"])
        task, stranger = trial.task(first), trial.task(other)
        data = task["data"] | {"image": trial.task(trial.keys[1])["data"]["image"]}
        copied = {"data": data, "meta": stranger["meta"]}
        made.person.call("POST", f"/api/projects/{task['project']}/import", json=[copied])
        trial.found = {name: set() for name in WRONG}
        trial.check()
        trial.check_pictures()
        said = sorted(what.partition(" [")[0] for what in trial.found["misassigned"])
        assert f"r01/{first} asks something else in Label Studio" in said
        assert f"r01/{first} has another image in Label Studio" in said


def test_every_place_of_sending_and_collecting_is_planned(quiet: Trial) -> None:
    places = {(phase, n + 1) for phase in ("send", "collect") for n in range(len(quiet.requests[phase]))}
    each = len(places) * len(KINDS)
    planned = list(itertools.islice(faults.plan(quiet.requests, np.random.default_rng(1)), each + 100))
    first = planned[:each]
    every = {Fault(kind, *place) for kind in KINDS for place in places}
    assert set(first) == set(faults.systematic(quiet.requests)) == every
    assert len(faults.systematic(quiet.requests)) == each  # how many benchmarks/faults.py asks for at least
    assert {fault.phase for fault in planned} == set(quiet.requests)


def test_the_study_sees_what_it_looks_for(made: Bench, quiet: Trial) -> None:
    trial = quiet
    first, second, skipped, *_ = trial.keys

    def found() -> dict[str, list[str]]:
        trial.found = {name: set() for name in WRONG}
        trial.check()
        trial.check_pictures()
        return {name: sorted(one.partition(" [")[0] for one in what) for name, what in trial.found.items() if what}

    assert found() == {}
    book = trial.folder / paths.LEDGER
    entries = [json.loads(line) for line in book.read_text().splitlines()]

    def rewrite(changed: list[dict[str, object]]) -> None:
        book.write_text("".join(json.dumps(entry) + "\n" for entry in changed))

    rewrite([entry for entry in entries if not (entry["event"] == "delivery" and entry["key"] == second)])
    assert f"{second} was labelled and is not here" in found()["lost"]
    rewrite([entry for entry in entries if entry["event"] != "skip"])
    assert found()["lost"] == [f"{skipped} was skipped, which the ledger does not say"]
    rewrite([*entries, next(entry for entry in entries if entry["event"] == "order")])
    assert found()["duplicate"] == [f"{first} was ordered 2 times"]
    rewrite([*entries, next(entry for entry in entries if entry["event"] == "delivery")])
    assert "was delivered in one version 2 times" in found()["duplicate"][0]
    rewrite([entry | {"key": "another"} if entry["event"] == "skip" else entry for entry in entries])
    assert any("r01 has 5 orders" in what for what in found()["duplicate"])
    rewrite(entries)

    one, other = (trial.folder / paths.mask(key) for key in (first, second))
    right = one.read_bytes()
    shutil.copy(other, one)
    assert found()["misassigned"] == [f"{first} has a mask that was not drawn for it"]
    save_mask(one, trial.drawn[first][0])
    assert f"{first} was corrected, but its old mask is here" in found()["lost"]
    one.unlink()
    assert found()["lost"] == [f"{first} was labelled and is not here"]
    one.write_bytes(right)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(trial.folder / paths.mask("stranger"))
    assert found()["misassigned"] == ["stranger has a mask, but nobody labelled it"]
    (trial.folder / paths.mask("stranger")).unlink()
    for part in (trial.folder / ".dvc/cache").rglob("*.dir"):
        part.chmod(0o644)
        part.write_text("[]")
    assert f"{second} is here, but DVC's cache does not have this mask" in found()["lost"]

    task = trial.task(second)
    call, project = made.person.call, task["project"]
    copy = {"data": task["data"] | {"image": trial.task(first)["data"]["image"]}, "meta": trial.task(first)["meta"]}
    call("POST", f"/api/projects/{project}/import", json=[copy])
    now = found()
    assert now["duplicate"] == [f"r01/{second} is 2 times in Label Studio"]
    assert now["misassigned"] == [
        f"r01/{second} has another image in Label Studio",
        f"r01/{second} was sent with another prediction",
    ]
