"""Runs a stage in this process: gives it the sections of params.yaml that its signature names, and nothing else."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pipeline import environment, inputs, ledger, paths
from pipeline.errors import UserError
from pipeline.params import BudgetLine, Params


def function(stage: str) -> Callable[..., None]:
    """The stage's function: `run` of its module."""
    with environment.explained():
        run: Callable[..., None] = importlib.import_module(f"pipeline.stages.{stage}").run
    return run


def sections(run: Callable[..., None], settings: Params) -> dict[str, Any]:
    """The sections of params.yaml that a stage's signature names, out of all `settings`."""
    wanted = inspect.signature(run).parameters
    named = {name: getattr(settings, name) for name in wanted if name not in ("round_name", "line", "settings")}
    return named | {"settings": settings} if "settings" in wanted else named


def run(stage: str, settings: Params, round_name: str = "", **given: Any) -> None:
    """Run one stage in this process.

    Args:
        stage: one of STAGES.
        settings: all of params.yaml; the stage is given the sections that its signature names, nothing else.
        round_name: r00, r01, ...; not for stages that are run once.
        given: the round's budget line as the command line gives it; checked against the budget table.

    Raises:
        UserError: the round is unknown, the command line contradicts the budget table, or the stage itself refuses.
    """
    for sentence in inputs.class_lists(settings.prepare) if stage not in ("settings", "prepare") else ():
        raise UserError(sentence)
    of_stage = function(stage)
    wanted, values = inspect.signature(of_stage).parameters, sections(of_stage, settings)
    if "round_name" in wanted:
        values["round_name"] = round_name
        source = stage == "evaluate" and round_name == paths.SOURCE_ROUND
        line = None if source else line_of(round_name, settings, **given)
        if "line" in wanted:
            values["line"] = line
    of_stage(**values)


def line_of(round_name: str, settings: Params, **given: Any) -> BudgetLine:
    """The round's line of the budget table; what dvc.yaml wrote into the command, `given`, must agree with it.

    Raises:
        UserError: it does not, or there is no such line, or it stands in the place of a round that has bought.
    """
    if round_name not in settings.budget:
        known = ", ".join(settings.budget)
        raise UserError(f"unknown round {round_name!r}: the budget table in {paths.PARAMS} has {known}")
    replaced = ledger.load().replaced(list(settings.budget))
    if replaced and replaced[1] == round_name:
        raise UserError(
            f"{replaced[0]} has bought, but the budget table in {paths.PARAMS} has {round_name} in its place, which "
            f"would buy again: rename {round_name} to {replaced[0]}, or put the line of {replaced[0]} back before it"
        )
    line = settings.budget[round_name]
    for name, value in given.items():
        if value not in (None, getattr(line, name)):
            raise UserError(
                f"--{name} {value} is not what {paths.PARAMS} says of {round_name} "
                f"({getattr(line, name)}): edit the budget table, then `dvc repro`"
            )
    return line
