from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import ledger, params, params_file, paths
from pipeline.commands import budget
from pipeline.errors import UserError
from pipeline.ledger.entries import Order
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
