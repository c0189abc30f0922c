"""Injects faults between us and a real Label Studio; counts what they lose, double or give to another image.

    python -m benchmarks.faults [--faults N] [--unit region]

Without N every kind of fault hits every request of a first sending and of a first collecting, and MORE any request.
How a trial goes, and what counts as *lost*, *duplicate*, *misassigned*, *stuck* and *orphan*: tests/server/faults.py.
"""

import argparse
import collections
import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from tests.server import faults
from tests.server.proxy import KINDS
from tests.server.region_trial import RegionTrial
from tests.server.trial import BY_ITSELF, KILLED, SENTENCE, WRONG, Trial, bench

MORE = 100
"""Faults at any request of any phase, besides those at every request of sending and collecting."""
TRIALS = {"image": Trial, "region": RegionTrial}
"""By `score.unit`."""


def table(studies: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each unit and kind of fault."""
    rows = []
    for unit, kind in itertools.product(studies, KINDS):
        outcomes = collections.Counter(hit["outcome"] for hit in studies[unit]["hits"] if hit["kind"] == kind)
        rows.append(
            {"unit": unit, "fault": kind, "number": outcomes.total()}
            | {name: outcomes[name] for name in (BY_ITSELF, SENTENCE, KILLED)}
        )
    return rows


def main() -> None:
    """Run the study and write docs/results/faults.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, help=f"so many are injected (default: as above, MORE is {MORE})")
    parser.add_argument("--unit", choices=TRIALS, default="image", help="what people are asked about")
    parser.add_argument("--seed", type=int, default=0, help="of their order, moments and variants")
    given = parser.parse_args()
    trial = TRIALS[given.unit]
    with tempfile.TemporaryDirectory(prefix="regain-faults-") as folder, bench(Path(folder), given.seed, trial) as made:
        started = time.monotonic()
        quiet = trial(made, {}).play("next round")
        assert not any(quiet.found.values()), quiet.found
        number = given.faults or len(faults.systematic(quiet.requests)) + MORE
        done = faults.study(made, faults.plan(quiet.requests, made.rng), number)
        seconds = time.monotonic() - started
    content = {
        "faults": len(done.hits),
        **{name: len(what) for name, what in done.findings.items()},
        "orphans": done.orphans,
        "copies": done.copies,
        "trials": done.trials,
        "annotations": done.accepted,
        "seed": given.seed,
        "seconds": round(seconds),
        "requests": quiet.requests,
        "findings": done.findings,
        "hits": [{**hit.fault._asdict(), "request": hit.request, "outcome": hit.outcome} for hit in done.hits],
    }
    before = results.load("faults")
    # That of the other unit stays as it was; a file of before there were units is of images.
    studies = before.get("studies") or ({"image": before} if before else {})
    studies = {unit: studies[unit] for unit in TRIALS if unit in studies} | {given.unit: content}
    counted = ("faults", *WRONG, "orphans", "copies", "trials", "annotations", "seed", "seconds")
    rows = [{"unit": unit, **{name: one[name] for name in counted}} for unit, one in studies.items()]
    results.save("faults", {"rows": rows, "studies": studies}, table(studies))
    print(
        json.dumps(
            {name: content[name] for name in ("faults", *WRONG, "orphans", "copies", "trials", "seconds")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
