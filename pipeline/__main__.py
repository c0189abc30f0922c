"""`python -m pipeline <command>`: the command line."""

import argparse
import contextlib
import fcntl
import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator

from pipeline import environment, paths, repository
from pipeline.errors import UserError, WaitingForPeople, choose

with environment.explained():
    from pipeline import faults, params_file
    from pipeline.params import ANY, Params
    from pipeline.stages import NETWORK, ONCE, STAGES, running

# Read by torch, which the stages import: threads that spin while they wait would stall the readers.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LAUNCHED = "REGAIN_LAUNCHED"
"""Environment variable that marks the processes that `launch` has started."""
WAITING = 75
STOPPED = 130
"""Exit status after Ctrl-C, as in a shell."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in STAGES:
        command = commands.add_parser(stage, help=f"the stage `{stage}` of dvc.yaml; `dvc repro` calls it")
        if stage not in ONCE:
            command.add_argument("round", help="r00, r01, ...")
            command.add_argument("--after", help="the round before, as the budget table says")
            command.add_argument("--images", type=_whole, help="images to buy, as the budget table says")
            command.add_argument("--minutes", type=float, help="minutes to buy, as the budget table says")
    status = commands.add_parser("status", help="where the loop stands, and who is waited for")
    status.add_argument("--json", action="store_true", help="for programs")
    budget = commands.add_parser("budget", help="spread a total over rounds, or say what it takes to reach an mIoU")
    unit = budget.add_mutually_exclusive_group(required=True)
    unit.add_argument("--images", type=int, help="total, counting what is bought already")
    unit.add_argument("--minutes", type=float, help="total, counting what is bought already")
    unit.add_argument("--reach", type=float, metavar="POINTS", help="what it takes to reach this mIoU; writes nothing")
    budget.add_argument("--rounds", type=int, help="rounds, counting those that have bought already")
    server = commands.add_parser("label-studio", help="a Label Studio server on this machine, until Ctrl-C")
    server.add_argument("--port", type=int, default=8080, help="where it listens (default 8080)")
    rehearse = commands.add_parser("rehearse", help="a simulated annotator answers in Label Studio, with known labels")
    rehearse.add_argument("--jitter", type=float, default=1.0, help="pixels that boundaries are off by (default 1)")
    rehearse.add_argument("--swaps", type=float, default=0.02, help="share of areas in a wrong class (default 0.02)")
    rehearse.add_argument("--skips", type=float, default=0.05, help="share of images that are skipped (default 0.05)")
    rehearse.add_argument("--seconds", type=float, default=90.0, help="median time for an image (default 90)")
    rehearse.add_argument("--seed", type=int, default=1, help="another seed makes other errors (default 1)")
    review = commands.add_parser("review", help="have people look again at the labels that are most likely wrong")
    review.add_argument("keys", nargs="*", metavar="KEY", help="of the labels, instead of the worst ones")
    review.add_argument("--round", help="that bought them (default: the last one that is audited)")
    review.add_argument("--worst", type=int, help="how many labels (default 5)")
    remove = commands.add_parser("remove", help="images that were bought have to stay out of the pool from now on")
    remove.add_argument("keys", nargs="+", metavar="KEY", help="as data/ledger.jsonl names them")
    commands.add_parser("join", help="after a git merge: one ledger and one data/labels of what both branches bought")
    commands.add_parser("doctor", help="look at all data that params.yaml names, before time is spent on it")
    given = parser.parse_args(argv)
    if given.command == "budget" and given.reach is None and given.rounds is None:
        budget.error("--rounds is required with --images and --minutes")
    return given


def _whole(text: str) -> int:
    """A whole number; DVC writes `images: 1e3` of the budget table as 1000.0."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def main(argv: list[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 a mistake to mend, 75 waiting for people."""
    given = arguments(argv)
    settings = None
    try:
        if given.command in (*STAGES, "doctor", "join"):
            repository.check()
        if given.command == "join":
            with environment.explained(), _alone("join"):
                importlib.import_module("pipeline.commands.join").run()
            return 0
        settings = params_file.load()
        _check_costs(settings)
        if given.command in STAGES:
            if given.command in NETWORK:
                _launch(settings.launch, argv)
            with _alone(given.command):
                of_round = {k: v for k, v in vars(given).items() if k in ("after", "images", "minutes")}
                running.run(given.command, settings, getattr(given, "round", ""), **of_round)
            return 0
        with environment.explained():
            command = importlib.import_module(f"pipeline.commands.{given.command.replace('-', '_')}")
        if given.command == "doctor":
            return int(command.run(settings))
        if given.command == "status":
            with _until_nobody_reads():
                command.run(settings, as_json=given.json)
        elif given.command == "review":
            command.run(settings, round_name=given.round, worst=given.worst, keys=given.keys)
        elif given.command == "remove":
            command.run(given.keys)
        elif given.command == "label-studio":
            command.run(settings, given.port)
        elif given.command == "rehearse":
            noise = command.Noise(given.jitter, given.swaps, given.skips, given.seconds, given.seed)
            command.run(settings, noise)
        elif given.reach is not None:
            command.reach(settings, target_points=given.reach, rounds=given.rounds)
        else:
            unit = "images" if given.images is not None else "minutes"
            command.run(settings, unit=unit, total=float(getattr(given, unit)), rounds=given.rounds)
    except UserError as error:
        print(f"{given.command}: {error}", file=sys.stderr)
        return 1
    except WaitingForPeople as waiting:
        print(waiting, file=sys.stderr)
        return WAITING
    except KeyboardInterrupt:
        print(f"{given.command}: stopped by hand; run it again and it goes on from here", file=sys.stderr)
        return STOPPED
    except (MemoryError, OSError, RuntimeError) as error:
        if (said := faults.sentence(error, given.command, settings)) is None:
            raise  # a bug: the traceback is what helps
        print(f"{given.command}: {said}", file=sys.stderr)
        return 1
    return 0


def _launch(launch: str, argv: list[str]) -> None:
    """Replace this process by the `launch` command, unless that has started it already; the default does nothing.

    Here and not in dvc.yaml: the number of GPUs does not determine the result, but DVC reruns a stage when its command
    changes.
    """
    if launch == Params.model_fields["launch"].default or {LAUNCHED, "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    where = f"launch is {launch!r} in {paths.PARAMS}"
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise UserError(f"{where}, which cannot be read ({error}): write it as in a shell") from None
    environment = {**os.environ, LAUNCHED: "1"}
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):  # CUDA_VISIBLE_DEVICES=0,1 torchrun ...
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if len(words) < 3 or words[-2:] != ["-m", "pipeline"]:
        raise UserError(f"{where}: let it end in `-m pipeline`, since the stage's name comes after it")
    try:
        os.execvpe(words[0], [*words, *argv], environment)
    except OSError as error:
        raise UserError(
            f"{where}, but {words[0]!r} does not start ({error.strerror}): install it, or take `launch` out of the file"
        ) from None


def _check_costs(settings: Params) -> None:
    """Check that `tune.reward.costs` names existing classes; everything else in params.yaml is checked by then.

    Raises:
        UserError: it names another class, or the class list cannot be read.
    """
    if not (costs := settings.tune.reward.costs):
        return
    from pipeline import datasets  # imported only here: few have costs

    known = dict.fromkeys(datasets.class_set(settings.prepare.classes).names)
    for true, by_label in costs.items():
        for name in (true, *(label for label in by_label if label != ANY)):
            choose("class in tune.reward.costs", known, name)


@contextlib.contextmanager
def _until_nobody_reads() -> Iterator[None]:
    """End quietly when what reads the output has seen enough, as in `status | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end


@contextlib.contextmanager
def _alone(stage: str) -> Iterator[None]:
    """One stage at a time: DVC's own lock is gone when dvc is killed and its stage lives on."""
    if int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("RANK", 0)):
        yield  # the first process of this launch holds the lock
        return
    paths.LOCK.parent.mkdir(exist_ok=True)
    with paths.LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{lock.read().strip() or 'another stage'} is still running here: wait, or stop it"
            ) from None
        lock.truncate(0)
        lock.write(f"`{stage}` (process {os.getpid()})")
        lock.flush()
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
