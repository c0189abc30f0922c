"""Injects faults between us and a real Label Studio; counts what they lose, double or give to another image.

A proxy stands between the client and the server and disturbs one chosen request of a run of `annotate`. In a trial
images are sent, a person labels, skips and corrects, and what they did is collected; each phase begins with a disturbed
run and goes on with an undisturbed one, which has to get through. First every kind of fault hits every request of a
first sending and of a first collecting; further ones hit any request of any phase.

*Lost* is a label or a skip that the server had accepted and that is not in store, ledger and DVC's cache, and an order
or a task that is not on both sides. *Duplicate* is an image that was ordered twice, has two tasks, came back twice in
one version, or passes the budget. *Misassigned* is a mask other than the one drawn for its image, and a task with
another image's picture or prediction. *Tracebacks* are errors that are no sentence of one line, *stuck* are undisturbed
runs that do not get through. *Orphans* are uploaded pictures of no task, which harm nobody.

A request that is carried out after the client gave up may make tasks a second time. The next run deletes those *copies*
if nobody has touched them; in a trial it comes before the person does. Else both are labelled, the later counts.

A few faults: test_faults.py; many: benchmarks/faults.py.
"""

import collections
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tests.server.proxy import KINDS, Fault
from tests.server.trial import PHASES, WRONG, Bench, Hit

SYSTEMATIC = ("send", "collect")


class Study(NamedTuple):
    """What all faults together did."""

    hits: list[Hit]
    findings: dict[str, list[str]]
    """For each of WRONG."""
    trials: int
    accepted: int
    """Labels that the server has accepted, corrections too."""
    orphans: int
    copies: int
    """Tasks that were there twice, until a run deleted them."""


def systematic(requests: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Every kind at every request of SYSTEMATIC."""
    places = [(phase, n) for phase in SYSTEMATIC for n in range(1, len(requests[phase]) + 1)]
    return [Fault(kind, *place) for place in places for kind in KINDS]


def plan(requests: Mapping[str, Sequence[str]], rng: np.random.Generator) -> Iterator[Fault]:
    """The systematic ones, in any order; then random ones without end.

    Args:
        requests: those of an undisturbed run of each phase.
        rng: draws the order and the random ones.
    """
    places = [(phase, n) for phase in requests for n in range(1, len(requests[phase]) + 1)]
    kinds, first = list(KINDS), systematic(requests)
    yield from (first[n] for n in rng.permutation(len(first)))
    while True:
        yield Fault(kinds[rng.integers(len(kinds))], *places[rng.integers(len(places))])


def study(made: Bench, faults: Iterator[Fault], number: int) -> Study:
    """Play trials, with one fault in each phase for as long as there are some, until `number` have come about.

    Raises:
        AssertionError: there are too few faults.
    """
    queues: dict[str, collections.deque[Fault]] = {phase: collections.deque() for phase in PHASES}
    done = Study([], {name: [] for name in WRONG}, 0, 0, 0, 0)
    with tqdm(total=number, desc="faults", unit="fault", disable=None) as bar:
        while len(done.hits) < number:
            if not any(queues.values()):
                for fault in itertools.islice(faults, number - len(done.hits)):
                    queues[fault.phase].append(fault)
            chosen = {phase: queue.popleft() for phase, queue in queues.items() if queue}
            assert chosen, f"only {len(done.hits)} faults have come about"
            trial = made.trial(made, chosen).play(list(chosen)[-1])
            for name, what in trial.found.items():
                done.findings[name].extend(sorted(what))
            done.hits.extend(trial.hits)
            done = done._replace(
                trials=done.trials + 1, accepted=done.accepted + trial.accepted, orphans=done.orphans + trial.orphans
            )
            shutil.rmtree(trial.folder)
            bar.update(len(trial.hits))
    return done._replace(copies=made.proxy.deleted)
