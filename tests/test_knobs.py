"""Every key of params.yaml does something: changing it changes a result here, or a test elsewhere is named for it."""

import ast
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import artifacts, paths
from pipeline.images.classes import CLASS_SETS
from pipeline.images.items import Item, id_table_of_labels, items_of
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Params, Prepare
from pipeline.params.section import Section
from pipeline.stages import ONCE, prepare
from pipeline.stages.running import run
from pipeline.town import draw
from pipeline.training import batches, loop
from tests import conftest, repo
from tests.conftest import ROOT

CLASSES = CLASS_SETS["cityscapes19"]
T = TypeVar("T")
STILL = {"augment": {"preset": "none"}}

Knobs = Mapping[str, tuple[Mapping[str, Any], Any]]
"""Key of a section -> (what else is set, in both runs; the value that is tried against the one there otherwise)."""

TRAINING: Knobs = {
    "steps": ({}, 3),
    "batch": ({}, 3),
    "lr": ({}, 1e-2),
    "warmup": ({}, 1.0),
    "power": ({"steps": 4}, 5.0),
    "weight_decay": ({}, 10.0),
    "class_smooth": ({}, 5.0),
    "lr_head": ({}, 10.0),
    "decay_norms": ({}, False),
    "clip": ({}, 0.01),
    "hard_pixels": ({}, 0.2),
    "hard_pixels_ramp": ({"hard_pixels": 0.2}, 1.0),
    "poly1": ({}, 5.0),
    "auxiliary": ({}, 0.4),
    "mix": ({}, "classmix"),
    "augment.preset": ({}, "none"),
    "augment.scale": (STILL, [1.5, 1.6]),
    "augment.flip": (STILL, 1.0),
    "augment.colour": (STILL, 1.0),
    "augment.blur": (STILL, 1.0),
    "augment.noise": (STILL, 1.0),
}

SAMPLED = {"estimator": "reinforce"}
CLIPPED = {"estimator": "ppo", "steps": 4, "lr": 0.1}
REWARD: Knobs = {
    "reward": ({}, "dice"),
    "estimator": ({}, "soft_iou"),
    "steps": ({}, 3),
    "lr": ({}, 1e-2),
    "lr_end": ({"steps": 4}, 1.0),
    "cross_entropy": ({}, 0.0),
    "kl": ({}, 5.0),
    "clip": ({}, 1e-4),
    "memory": ({"steps": 4}, 0.0),
    "tolerance": (SAMPLED | {"reward": "boundary_f1"}, 0),
    "overlap": (SAMPLED | {"reward": "object_recall"}, 0.01),
    "costs": ({"reward": "expected_cost"}, {"road": {"any": 50.0}}),
    "samples": (SAMPLED, 3),
    "baseline": (SAMPLED, "none"),
    "credit": (SAMPLED, "image"),
    "unit": ({}, "patch"),
    "patch": ({"unit": "patch"}, 2),
    "epochs": (CLIPPED, 2),
    "clip_ratio": (CLIPPED | {"epochs": 4}, 1e-6),
}

TUNE: Knobs = {
    "source_share": ({}, 0.5),
    "held_out": ({}, 0.34),
    "reward.validate_every": ({"held_out": 0.34, "reward.steps": 4}, 1),
    "reward.patience": ({"held_out": 0.34, "reward.steps": 4, "reward.validate_every": 1, "reward.lr": 1e-12}, 1),
}

MEMBERS = {"acquisition": "evpi"}
REGIONS = {"unit": "region", "region_smallest": 5}
SCORE: Knobs = {
    "acquisition": ({}, "entropy"),
    "unit": ({}, "block"),
    "blocks": ({"unit": "block"}, [1, 3]),
    "seconds_to_open": (REGIONS, 17.0),
    "seconds_per_answer": (REGIONS, 17.0),
    "smooth": ({}, 0.5),
    "calibrate": ({}, False),
    "minutes_per_image": ({}, 7.0),
    "members": (MEMBERS, 2),
    "dropout": (MEMBERS, 0.5),
    "features": ({}, True),
}

SELECT: Knobs = {
    "method": ({}, "best_first"),
    "power": ({}, 3.0),
    "uniform_share": ({}, 0.9),
}

MODEL: Knobs = {
    "name": ({}, "lraspp_mobilenet_v3_large"),
    "width": ({}, 8),
    "encoder": ({"name": "fpn", "width": 32}, "resnet18"),
}

ELSEWHERE = {
    "launch": "test_main.py::test_launch_starts_the_stages_that_use_the_network",
    "seed": "test_select.py::test_same_seed_same_draw_other_seed_or_round_another",
    "budget.after": "test_select.py::test_the_first_purchase_may_have_a_method_of_its_own",
    "budget.images": "test_select.py::test_fills_the_line_with_rows_of_the_scores",
    "budget.minutes": "test_select.py::test_minutes_count_what_was_measured",
    "prepare.size_mismatch": "test_prepare.py::test_masks_of_another_size",
    "prepare.classes": "test_prepare.py::test_classes_are_those_that_params_name",
    **{
        f"prepare.{split}.{key}": "test_prepare.py::test_every_key_of_a_set_is_heeded"
        for split in ("source", "pool", "test")
        for key in ("dataset", "root", "split")
    },
    "model.size": "test_knobs.py::test_the_network_sees_images_of_the_size_and_as_many_as_it_is_told",
    "model.weights": "contracts/test_models.py::test_weights_of_a_file_are_in_the_encoder",
    "pretrain.lr_encoder": "test_training.py::test_plan_has_what_the_settings_say",
    "tune.growth": "test_resume.py::test_steps_grow_with_the_labels_also_where_a_killed_training_goes_on",
    "tune.likelihood.lr_encoder": "test_training.py::test_plan_has_what_the_settings_say",
    "calibration.method": "test_knobs.py::test_calibration_is_fitted_on_the_labels_by_the_method",
    "calibration.start": "test_pretrain.py::test_the_stage_calibrates_on_what_it_is_told",
    "score.region_scale": "test_region_maps.py::test_what_regions_are_like_is_as_params_say",
    "score.region_smallest": "test_region_maps.py::test_what_regions_are_like_is_as_params_say",
    "select.regions": "test_region_selection.py::test_rows_have_the_gain_price_and_probability_of_what_is_asked",
    "select.regions_per_image": "test_region_selection.py::test_regions_per_image_are_those_that_bring_most_per_minute",
    "score.blend_end": "test_score.py::test_blend_falls_with_the_rounds_that_have_bought",
    "score.blend_rounds": "test_score.py::test_blend_falls_with_the_rounds_that_have_bought",
    "select.start": "test_select.py::test_the_first_purchase_may_have_a_method_of_its_own",
    "select.fallback": "test_select.py::test_score_without_a_signal_no_longer_chooses",
    "annotate.annotator": "test_select.py::test_the_oracle_says_beforehand_what_an_image_takes",
    "annotate.oracle_minutes": "test_select.py::test_the_oracle_says_beforehand_what_an_image_takes",
    **dict.fromkeys(
        ("annotate.oracle_purity", "annotate.oracle_seconds_to_open", "annotate.oracle_seconds_per_answer"),
        "test_region_orders.py::test_answers_that_are_all_mixed_are_paid_and_learnt_nothing_from",
    ),
    "annotate.mode": "test_annotate.py::test_mode_wait_asks_until_everything_is_back_and_labels_are_cumulative",
    "annotate.cost_per_hour": "test_budget.py::test_money_is_shown_where_an_hour_has_a_price",
    "annotate.url": "server/test_annotate.py::test_every_annotator_answers_what_it_is_asked_once",
    "annotate.project": "server/test_annotate.py::test_every_annotator_answers_what_it_is_asked_once",
    "annotate.images": "test_images.py::test_addresses_have_the_path_of_label_studio_and_are_looked_at",
    "annotate.media": "test_images.py::test_addresses_have_the_path_of_label_studio_and_are_looked_at",
    "annotate.by": "test_annotations.py::test_what_is_sent_is_as_params_say",
    "annotate.start": "test_annotations.py::test_what_is_sent_is_as_params_say",
    "annotate.annotators_per_image": "test_annotations.py::test_latest_of_each_person_and_ground_truth_before_all",
    "annotate.several": "test_annotations.py::test_latest_of_each_person_and_ground_truth_before_all",
    "annotate.min_seconds": "test_annotations.py::test_what_needs_another_look_is_as_params_say",
    "annotate.max_share": "test_annotations.py::test_what_needs_another_look_is_as_params_say",
    "evaluate.calibration_bins": "test_evaluate.py::test_calibration_error_is_of_as_many_bins_as_params_say",
    "evaluate.decode": "test_evaluate.py::test_both_decoders_are_measured_and_the_chosen_one_leads",
    "evaluate.decode_images": "test_evaluate.py::test_both_decoders_are_measured_and_the_chosen_one_leads",
    "report.reach": "test_budget.py::test_status_says_what_a_target_takes_in_one_line",
    "report.panels": "test_blocks.py::test_no_more_panels_are_drawn_than_params_say",
    "compute.accelerator": "test_doctor.py::test_what_the_machine_or_the_network_will_not_do_is_a_problem",
    "compute.precision": "test_doctor.py::test_what_the_machine_or_the_network_will_not_do_is_a_problem",
    "compute.processes": "test_doctor.py::test_what_the_machine_or_the_network_will_not_do_is_a_problem",
    "compute.batch": "test_knobs.py::test_the_network_sees_images_of_the_size_and_as_many_as_it_is_told",
    "compute.workers": "test_knobs.py::test_as_many_processes_read_as_params_say",
    "compute.checkpoint_seconds": "test_knobs.py::test_checkpoints_are_written_as_often_as_params_say",
}
"""Key -> the test that holds it, below tests/."""


def keys(section: type[Section], above: str = "") -> Iterator[str]:
    """All keys of params.yaml that have a value of their own, as in `tune.reward.lr`."""
    for name, field in section.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        below = [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
        if below:
            yield from keys(below[0], f"{above}{name}.")
        else:
            yield above + name


HERE = {
    "pretrain.": TRAINING,
    "tune.likelihood.": TRAINING,
    "tune.reward.": REWARD,
    "tune.": TUNE,
    "score.": SCORE,
    "select.": SELECT,
    "model.": MODEL,
}
TOWN = [key for key in keys(Params) if key.startswith("prepare.town.")]


def test_every_key_of_params_has_a_test() -> None:
    here = [above + key for above, knobs in HERE.items() for key in knobs] + TOWN
    assert sorted([*here, *ELSEWHERE]) == sorted(keys(Params))


@pytest.mark.parametrize("named", sorted(set(ELSEWHERE.values())))
def test_named_tests_are_there_and_are_of_the_key(named: str) -> None:
    file, name = named.split("::")
    text = (ROOT / "tests" / file).read_text()
    assert name in [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert all(key.rpartition(".")[2] in text for key, test in ELSEWHERE.items() if test == named)


# -- a key at a time ---------------------------------------------------------------------------------------------------


Stage = Callable[[str, Params], None]


@pytest.fixture(scope="module")
def run_before(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Has a stage of r01 run in the current project, which is as it was made; with the same params only once."""
    before: dict[tuple[str, str], Path] = {}

    def stage(name: str, settings: Params) -> None:
        what = name, settings.model_dump_json()
        if what in before:
            shutil.copytree(before[what], Path.cwd(), dirs_exist_ok=True)
            return
        run_stage(name, settings)
        before[what] = tmp_path_factory.mktemp("before") / "project"
        shutil.copytree(Path.cwd(), before[what])

    return stage


def run_stage(name: str, settings: Params) -> None:
    """Run a stage, of r01 if it is one of a round."""
    run(name, settings, "" if name in ONCE else "r01")


@pytest.fixture
def project(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conftest.copied(labelled, tmp_path / "project", monkeypatch)


def put(section: dict[str, Any], key: str, value: Any) -> None:
    """Set a key such as `reward.lr`, and leave other dicts that hold the same part alone."""
    name, _, below = key.partition(".")
    if below:
        section[name] = dict(section.get(name, {}))
        put(section[name], below, value)
    else:
        section[name] = value


def both(name: str, knobs: Knobs, key: str, above: str = "") -> Iterator[Params]:
    """Params with what is set beside a key of the section, and the same with the key changed as well."""
    section = repo.params().model_dump(exclude_unset=True).get(name, {})
    beside, value = knobs[key]
    for more in ({}, {key: value}):
        changed = dict(section)
        for part, wanted in {**beside, **more}.items():
            put(changed, above + part, wanted)
        yield repo.params(**{name: changed})


def results(run_before: Stage, stage: str, settings: Iterator[Params], read: Callable[[], T]) -> tuple[T, T]:
    """What a stage leaves to read with each of `both`, one after the other in the same project."""
    plain, changed = settings
    run_before(stage, plain)
    before = read()
    run_stage(stage, changed)
    return before, read()


def trained(stage: str) -> tuple[bytes, str]:
    """Weights and log that a stage has written."""
    name = {"pretrain": paths.SOURCE_ROUND, "tune": "r01"}[stage]
    weights = b"".join(value.numpy().tobytes() for value in artifacts.load_model(name)[0].values())
    return weights, (paths.model(name) / "log.csv").read_text()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", TRAINING)
@pytest.mark.parametrize(("stage", "above"), [("pretrain", ""), ("tune", "likelihood.")])
def test_every_key_of_training_changes_what_is_learnt(run_before: Stage, stage: str, above: str, key: str) -> None:
    (plain, log), (changed, other) = results(
        run_before, stage, both(stage, TRAINING, key, above), lambda: trained(stage)
    )
    assert changed != plain
    assert ("auxiliary" in log, "auxiliary" in other) == (False, key == "auxiliary")  # a term of the loss


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", REWARD)
def test_every_key_of_the_reward_changes_what_is_learnt(run_before: Stage, key: str) -> None:
    (plain, _), (changed, _) = results(
        run_before, "tune", both("tune", REWARD, key, "reward."), lambda: trained("tune")
    )
    assert changed != plain


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", TUNE)
def test_every_key_of_tuning_changes_the_training(run_before: Stage, key: str) -> None:
    plain, changed = results(run_before, "tune", both("tune", TUNE, key), lambda: trained("tune"))
    assert changed[1] != plain[1]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", SCORE)
def test_every_key_of_scoring_changes_the_scores(run_before: Stage, key: str) -> None:
    def scored(run: Stage, settings: Params) -> tuple[str, list[str]]:
        run("regions", settings)
        run("score", settings)
        return paths.scores("r01").read_text(), artifacts.load_features("r01").keys

    usual, other = both("score", SCORE, key)
    assert scored(run_stage, other) != scored(run_before, usual)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", SELECT)
def test_every_key_of_selecting_changes_the_selection(key: str) -> None:
    pool = artifacts.load_manifest("pool")["key"]
    repo.score("r01", pool, gain=np.linspace(0.1, 0.9, len(pool)))

    def selected(settings: Params) -> str:
        run("select", settings, "r01")
        return paths.selection("r01").read_text()

    plain, changed = (selected(settings) for settings in both("select", SELECT, key))
    assert changed != plain


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", MODEL)
def test_every_key_of_the_model_changes_the_network(key: str) -> None:
    def shapes(settings: Params) -> list[tuple[int, ...]]:
        network = saved.new_network(settings.model, CLASSES, torch.Generator().manual_seed(1))
        return [tuple(value.shape) for value in network.state_dict().values()]

    plain, changed = (shapes(settings) for settings in both("model", MODEL, key))
    assert changed != plain


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("size", "batch"), [((16, 32), 8), ((32, 32), 3)])
def test_the_network_sees_images_of_the_size_and_as_many_as_it_is_told(
    size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    predict = inference.predict

    def watched(devices: Devices, network: Network, images: torch.Tensor, with_cells: bool = False) -> Any:
        seen.append(tuple(images.shape))
        return predict(devices, network, images, with_cells)

    monkeypatch.setattr(inference, "predict", watched)
    model = repo.params().model.model_dump(exclude_unset=True) | {"size": size}
    compute = repo.params().compute.model_dump(exclude_unset=True) | {"batch": batch}
    settings = repo.params(model=model, compute=compute)
    network, _ = saved.open_network(paths.SOURCE_ROUND, settings.model, CLASSES)
    items = items_of(artifacts.load_manifest("pool", Path("pool")).assign(mask=""), id_table_of_labels(19))
    devices = Devices.start(settings.compute)
    assert len(list(inference.outputs(devices, network, items, settings.model.size, settings.compute, ""))) == len(seen)
    assert seen == [(min(batch, 8 - first), 3, *size) for first in range(0, 8, batch)]


@pytest.mark.usefixtures("project")
def test_as_many_processes_read_as_params_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Watched(DataLoader):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, num_workers: int = 0, **options: Any) -> None:
            asked.append(num_workers)
            super().__init__(*arguments, num_workers=0, **options)

    for module in (inference, batches):
        monkeypatch.setattr(module, "DataLoader", Watched)
    for workers in (0, 3):
        run("tune", repo.params(compute={"accelerator": "cpu", "workers": workers}), "r01")
        assert set(asked) == {workers}
        asked.clear()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("seconds", "saved_at"), [(0.0, [1, 2]), (1e9, [2])])
def test_checkpoints_are_written_as_often_as_params_say(
    seconds: float, saved_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(loop, "_save", lambda network, optimizer, scaler, plan, step, *rest: written.append(step))
    run("pretrain", repo.params(compute={"accelerator": "cpu", "workers": 0, "checkpoint_seconds": seconds}))
    assert written == saved_at


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("key", "value"), [("source", 4), ("pool", 4), ("test", 4), ("size", (32, 32)), ("seed", 8)])
def test_every_key_of_the_town_is_handed_on(key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(draw, "draw_town", lambda root, **given: drawn.update(given))
    town = {"source": 3, "pool": 2, "test": 1, "size": (16, 32), "seed": 7} | {key: value}
    prepare.draw(Prepare.model_validate(repo.params().prepare.model_dump() | {"town": town}))
    assert drawn == town


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("method", "numbers"), [("temperature", (1, 0)), ("vector", (19, 19))])
def test_calibration_is_fitted_on_the_labels_by_the_method(method: str, numbers: tuple[int, int]) -> None:
    settings = repo.params(calibration={"method": method})
    repo.audit(settings)
    run("tune", settings, "r01")
    _, fitted = saved.open_network("r01", settings.model, CLASSES)
    assert (len(fitted.scale), len(fitted.bias)) == numbers
    before, _ = saved.open_network("r00", settings.model, CLASSES)
    pool = artifacts.load_manifest("pool", Path("pool"))[:3]
    items = [Item(row.key, Path(row.image), paths.mask(row.key), id_table_of_labels(19)) for row in pool.itertuples()]
    devices = Devices.start(settings.compute)
    pixels = inference.calibration_pixels(devices, before, items, settings.model.size, settings.compute, [4.0] * 3)
    assert pixels.fit(method) == fitted  # of the model before, whose labels these still are new to
