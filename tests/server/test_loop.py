"""Two rounds of the whole loop through a real Label Studio, beside the same loop with the oracle."""

from pathlib import Path

import pytest

from tests import project
from tests.forks import Forks
from tests.server.studio import Studio

pytestmark = pytest.mark.dvc

BUDGET = ("{after: r00, images: 3}", "{after: r01, images: 2}")


def test_two_rounds_with_a_perfect_annotator_end_where_the_oracle_ends(
    tmp_path: Path, studio: Studio, forks: Forks
) -> None:
    with_oracle = project.make(tmp_path / "oracle", budget=BUDGET)
    with_oracle.run_all()

    with_people = project.make(tmp_path / "people", budget=BUDGET, forks=forks)
    with_people.edit("annotator: oracle", f"annotator: label_studio, url: '{studio.url}', project: Two rounds")
    with_people = with_people._replace(variables={"LABEL_STUDIO_API_KEY": studio.token})
    for number, images in enumerate((3, 2), start=1):
        waiting = with_people.dvc("repro")
        assert waiting.status != 0
        assert f"r{number:02d}: 0 of {images} labelled; run `dvc repro` again when they are done" in waiting.output
        again = with_people.dvc("repro")  # nobody has done anything yet: nothing is sent or ordered twice
        assert again.ran == [f"annotate@r{number:02d}"]
        done = with_people.pipeline("rehearse", "--jitter", "0", "--swaps", "0", "--skips", "0")
        assert done.status == 0, done.output
    with_people.repro()

    assert with_people.lost() == []
    assert with_people.ordered() == with_oracle.ordered()
    assert {e["annotator"] for e in with_people.ledger() if e["event"] == "delivery"} == {studio.email}
    expected, found = with_oracle.results(), with_people.results()
    same = [name for name in expected if name.startswith(("data/labels/", "data/models/", "data/metrics/"))]
    assert len(same) > 5 + 3 + 3
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}

    assert with_people.repro().ran == []
    status = with_people.pipeline("status")
    assert f"{studio.email}" in status.output
