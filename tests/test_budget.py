import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import __main__, artifacts, ledger, params, params_file, paths, storage
from pipeline.commands import budget
from pipeline.errors import UserError
from pipeline.evaluation import planner
from pipeline.ledger.entries import Delivery, Order
from tests import repo
from tests.conftest import ROOT

SHIPPED = (ROOT / "params.yaml").read_text()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(SHIPPED)


def run(unit: str, total: float, rounds: int) -> dict[str, params.BudgetLine]:
    budget.run(params_file.load(), unit=unit, total=float(total), rounds=rounds)
    return params_file.load().budget


def ordered(*names: str) -> None:
    ledger.append([Order(name, f"image of {name}", "oracle", "cityscapes19", 0.1, 10.0, 0.5, "") for name in names])


@pytest.mark.parametrize("images", [[50], [25, 25], [17, 17, 16], [13, 13, 12, 12]])
def test_table_is_written_and_every_other_line_stays_as_it_was(images: list[int]) -> None:
    table = run("images", 50, len(images))
    assert list(table) == ["r01", "r02", "r03", "r04"][: len(images)]
    rounds = [f"  r0{n + 1}: {{after: r0{n}, images: {count}}}" for n, count in enumerate(images)]
    lines = SHIPPED.splitlines()
    first, *_, last = [number for number, line in enumerate(lines) if line.startswith("  r0")]
    assert paths.PARAMS.read_text().splitlines() == [*lines[:first], *rounds, *lines[last + 1 :]]


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_comments_stay_for_any_number_of_rounds(rounds: int) -> None:
    text = repo.PARAMS.replace("images: 3}", "images: 3}  # the first").replace(
        "seed: 1", "# before seed\nseed: 1 # it"
    )
    paths.PARAMS.write_text("# on top\n" + text + "# at the end\n")
    ordered("r01")
    run("images", 30, rounds) if rounds > 1 else run("images", 3, 1)
    written = paths.PARAMS.read_text()
    for comment in ("# on top", "# the first", "# before seed", "# it", "# at the end"):
        assert written.count(comment) == 1, written
    assert written.index("# before seed") < written.index("seed: 1")


def test_rounds_that_have_ordered_stay_and_count() -> None:
    ordered("r01")
    table = run("images", 50, 3)
    assert [line.images for line in table.values()] == [20, 15, 15]
    assert next(iter(table.values())) == params_file.load(ROOT / "params.yaml").budget["r01"]


def test_fewer_rounds_than_before() -> None:
    ordered("r01")
    assert [line.images for line in run("images", 50, 2).values()] == [20, 30]
    assert [line.images for line in run("images", 20, 1).values()] == [20]


def test_names_go_on_after_nine() -> None:
    assert list(run("images", 24, 12))[-4:] == ["r09", "r10", "r11", "r12"]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["images", "minutes"]), st.integers(1, 9), st.integers(0, 5000))
def test_lines_sum_to_the_total_and_hardly_differ(unit: str, rounds: int, more: int) -> None:
    paths.PARAMS.write_text(SHIPPED)
    total = rounds + more if unit == "images" else rounds + more / 8
    amounts = [getattr(line, unit) for line in run(unit, total, rounds).values()]
    assert len(amounts) == rounds
    assert sum(amounts) == pytest.approx(total, abs=1e-6)
    assert max(amounts) - min(amounts) <= (1 if unit == "images" else 0.011 * rounds)


@pytest.mark.parametrize(
    ("unit", "total", "rounds", "says"),
    [
        ("images", 0, 3, "nothing to spend: give numbers above 0"),
        ("images", -5, 3, "nothing to spend"),
        ("images", 60, 0, "nothing to spend"),
        ("images", 10, 3, "1 round took 20 images already; .* leaves -10 for 2 rounds"),
        ("images", 21, 3, "leaves 1 for 2 rounds"),
        ("images", 60, 1, "leaves 40 for 0 rounds"),
        ("minutes", 60, 3, "r01 was bought as 20 images: give the total in that unit"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_changes_nothing(unit: str, total: float, rounds: int, says: str) -> None:
    ordered("r01")
    with pytest.raises(UserError, match=says):
        run(unit, total, rounds)
    assert paths.PARAMS.read_text() == SHIPPED


def test_round_without_a_number_at_its_end_is_a_sentence() -> None:
    text = SHIPPED.replace("  r01: {after: r00", "  first: {after: r00").replace("after: r01", "after: first")
    paths.PARAMS.write_text(text)
    ordered("first")
    with pytest.raises(UserError, match="the round 'first' has no number at its end"):
        run("images", 60, 3)
    assert paths.PARAMS.read_text() == text


# what it takes to reach an mIoU

Capture = pytest.CaptureFixture[str]
DEMO = (35.9, 39.9, 42.3)


def bought(*mious: float, images: int = 20, minutes: float = 10.0) -> None:
    """Rounds of the shipped table that were bought, came back and were measured."""
    rows: list[dict[str, object]] = []
    for number, miou in enumerate(mious, start=1):
        name = f"r{number:02}"
        keys = [f"{name}-{image}" for image in range(images)]
        ledger.append([Order(name, key, "oracle", "cityscapes19", 0.1, minutes, 0.5, "") for key in keys])
        ledger.append([Delivery(name, key, "oracle", minutes, "", "") for key in keys])
        rows += [{"key": key, "round": name, "minutes": minutes, "sha256": ""} for key in keys]
        artifacts.save_labels(name, rows)
        storage.save_json(paths.metrics(name), {"miou": miou / 100})


def said(capsys: Capture, *words: str) -> str:
    assert __main__.main(["budget", *words]) == 0
    return capsys.readouterr().out


def test_what_a_target_takes_is_said_in_minutes_and_images_and_as_lines_of_the_budget(capsys: Capture) -> None:
    bought(*DEMO)
    before = paths.PARAMS.read_text()
    out = said(capsys, "--reach", "45")
    found = planner.plan(planner.fit([200.0, 400.0, 600.0], DEMO), 45.0)
    assert out.startswith(f"45 mIoU points: about {float(f'{found.expected:.2g}'):g} minutes in all, ")
    assert "; 600 so far\n" in out
    images = math.ceil((found.expected - 600) / 10)
    assert f", {images} images at 10 minutes\n" in out
    assert "an hour" not in out
    assert f"the next line: r04: {{after: r03, images: {-(-images // 5)}}}\n" in out
    assert paths.PARAMS.read_text() == before
    [advice] = repo.commands(out)
    assert advice == f"python -m pipeline budget --images {60 + images} --rounds 8"
    said(capsys, *advice.split()[4:])
    table = params_file.load().budget
    assert [line.images for line in table.values()][:3] == [20, 20, 20]
    assert sum(line.images or 0 for line in table.values()) == 60 + images
    assert str(table["r04"]) == f"{-(-images // 5)} images"


def test_so_many_rounds_as_are_asked_for(capsys: Capture) -> None:
    bought(*DEMO)
    assert "--rounds 4`" in said(capsys, "--reach", "45", "--rounds", "4")
    assert __main__.main(["budget", "--reach", "45", "--rounds", "3"]) == 1
    assert "budget: 3 rounds with 3 bought leave 0" in capsys.readouterr().err


def test_lines_in_minutes_are_answered_in_minutes(capsys: Capture) -> None:
    paths.PARAMS.write_text(SHIPPED.replace("images: 20}", "minutes: 200}"))
    bought(*DEMO)
    out = said(capsys, "--reach", "45")
    [advice] = repo.commands(out)
    assert re.fullmatch(r"python -m pipeline budget --minutes \d+ --rounds 8", advice)
    said(capsys, *advice.split()[4:])
    total = sum(line.minutes or 0 for line in params_file.load().budget.values())
    assert total == float(advice.split()[5])


def test_money_is_shown_where_an_hour_has_a_price(capsys: Capture) -> None:
    bought(*DEMO)
    paths.PARAMS.write_text(SHIPPED.replace("annotate: {", "annotate: {cost_per_hour: 36, "))
    found = planner.plan(planner.fit([200.0, 400.0, 600.0], DEMO), 45.0)
    assert f"; {(found.expected - 600) / 60 * 36:.0f} at 36 an hour\n" in said(capsys, "--reach", "45")


@pytest.mark.parametrize(
    ("mious", "target", "says"),
    [
        ((), "55", "what 55 mIoU points take cannot be told yet: 0 rounds with labels measured, and a curve needs 3"),
        (DEMO[:2], "55", "cannot be told yet: 2 rounds with labels measured, and a curve needs 3; buy small rounds"),
        (DEMO, "42", "42 mIoU points are reached: r03 measured 42.3\n"),
        ((42.3, 39.9, 35.9), "55", "cannot be told: the mIoU does not rise with what is bought; look at reports/"),
        (DEMO, "55", "55 is beyond all of them, only the logarithm never does"),
        (DEMO, "55", "55 mIoU points: never with a probability of 0."),
        (DEMO, "99", "labels alone are a bad bet: try a larger network"),
    ],
)
def test_what_cannot_be_told_or_bought_is_a_sentence(
    mious: tuple[float, ...], target: str, says: str, capsys: Capture
) -> None:
    bought(*mious)
    assert says in said(capsys, "--reach", target)


def test_levelled_off_is_not_to_be_expected(capsys: Capture) -> None:
    lines = "".join(f"  r{n:02}: {{after: r{n - 1:02}, images: 20}}\n" for n in range(4, 13))
    paths.PARAMS.write_text(SHIPPED.replace("images: 20}\n\n", "images: 20}\n" + lines + "\n", 1))
    bought(30, 36, 39, 41, 41.7, 41.9, 42, 42.1, 42, 42.1, 42.05, 42.1)
    assert "70 mIoU points are not to be expected of more labels: never with a probability of " in said(
        capsys, "--reach", "70"
    )


@pytest.mark.parametrize("target", ["0.55", "0", "-3", "101", "nan"])
def test_target_that_is_no_miou_in_points_is_refused(target: str, capsys: Capture) -> None:
    assert __main__.main(["budget", f"--reach={target}"]) == 1
    assert "is no mIoU in points: give 1 to 100, as in --reach 55" in capsys.readouterr().err


def test_a_round_that_is_out_may_do(capsys: Capture) -> None:
    paths.PARAMS.write_text(SHIPPED.replace("images: 20}\n\n", "images: 20}\n  r04: {after: r03, images: 500}\n\n", 1))
    bought(*DEMO)
    ledger.append([Order("r04", f"r04-{n}", "oracle", "cityscapes19", 0.1, 10.0, 0.5, "") for n in range(500)])
    assert "r04 is bought and may do: run `dvc repro`, and ask again" in said(capsys, "--reach", "45")


def test_a_pool_that_is_too_small_is_said(capsys: Capture) -> None:
    bought(*DEMO)
    keys = [f"k{n}" for n in range(66)]
    columns = {"image": "", "mask": "", "height": 1, "width": 1, "sha256": "", "mask_sha256": ""}
    artifacts.save_manifest("pool", pd.DataFrame({"key": keys, **columns}))
    out = said(capsys, "--reach", "45")
    assert "the pool has only 6 left" in out
    assert "--images 66 --rounds 8`" in out


def test_status_says_what_a_target_takes_in_one_line(capsys: Capture) -> None:
    bought(*DEMO)
    assert __main__.main(["status"]) == 0
    assert "mIoU points" not in capsys.readouterr().out
    paths.PARAMS.write_text(SHIPPED.replace("report: {", "report: {reach: 45, "))
    assert __main__.main(["status"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "45 mIoU points" in line]
    assert line == said(capsys, "--reach", "45").splitlines()[0]
    assert __main__.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reach"] == line
