from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
from pydantic import ValidationError

from pipeline import datasets, params, params_file
from pipeline.annotators import ANNOTATORS
from pipeline.errors import UserError, choose
from pipeline.estimators import ESTIMATORS
from pipeline.gain import ACQUISITIONS
from pipeline.networks.architectures import MODELS
from pipeline.networks.calibration import CALIBRATIONS
from pipeline.params import ENCODERS, PRESETS, UNTRACKED, Params
from pipeline.rewards import REWARDS
from pipeline.selection import METHODS
from pipeline.training.augmentation import MIXES
from tests.conftest import ROOT

SHIPPED = (ROOT / "params.yaml").read_text()
FILES = [ROOT / "params.yaml", *sorted(ROOT.glob("examples/*/params.yaml"))]


def load(folder: Path, text: str) -> Params:
    path = folder / "params.yaml"
    path.write_text(text)
    return params_file.load(path)


def changed(old: str, new: str) -> str:
    assert old in SHIPPED, f"params.yaml no longer holds {old!r}"
    return SHIPPED.replace(old, new, 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_shipped_files_load_and_every_name_in_them_is_known(path: Path) -> None:
    loaded = params_file.load(path)
    choose("model", MODELS, loaded.model.name)
    choose("acquisition", ACQUISITIONS, loaded.score.acquisition)
    choose("method", METHODS, loaded.select.method)
    choose("annotator", ANNOTATORS, loaded.annotate.annotator)
    choose("reward", REWARDS, loaded.tune.reward.reward)
    choose("estimator", ESTIMATORS, loaded.tune.reward.estimator)
    for data in (loaded.prepare.source, loaded.prepare.pool, loaded.prepare.test):
        choose("dataset", datasets.DATASETS, data.dataset)
    assert datasets.class_set(loaded.prepare.classes).names


def test_names_offered_by_the_types_are_the_names_of_the_dicts() -> None:
    """For acquisitions, rewards, estimators and methods of selection, see tests/contracts/."""
    offered = {
        params.Calibration.model_fields["method"]: CALIBRATIONS,
        params.Training.model_fields["mix"]: MIXES,
        params.Model.model_fields["name"]: MODELS,
        params.Annotate.model_fields["annotator"]: ANNOTATORS,
        params.Data.model_fields["dataset"]: datasets.DATASETS,
        params.Augment.model_fields["preset"]: PRESETS,
    }
    assert all(set(get_args(field.annotation)) == set(names) for field, names in offered.items())


def test_encoders_are_those_of_the_library() -> None:
    assert set(ENCODERS) == set(smp.encoders.get_encoder_names())


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    loaded = load(tmp_path, changed("images: 20", "images: 2e1").replace("steps: 400", "steps: 1e3"))
    assert (loaded.budget["r01"].images, loaded.pretrain.steps) == (20, 1000)
    assert isinstance(loaded.pretrain.steps, int)


def test_nothing_after_a_colon_is_the_default(tmp_path: Path) -> None:
    bare = changed("score: {acquisition: shortfall, smooth: 0.01, minutes_per_image: 10, features: true}", "score:")
    bare = bare.replace("select: {method: clue}", "select:\n  method:\n  start:\n").replace(
        "reward: pooled_miou", "reward: ~"
    )
    loaded = load(tmp_path, bare)
    assert (loaded.score, loaded.select, loaded.tune.reward.reward) == (params.Score(), params.Select(), "pooled_miou")


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(SHIPPED.replace("\n", "\r\n").encode("utf-8-sig"))
    assert params_file.load(tmp_path / "params.yaml") == params_file.load(ROOT / "params.yaml")


def test_preset_is_where_augment_starts_from(tmp_path: Path) -> None:
    def augment(text: str) -> params.Augment:
        return load(tmp_path, changed("lr: 2e-3}", f"lr: 2e-3, augment: {{{text}}}}}")).pretrain.augment

    values = {name: augment(f"preset: {name}").model_dump(exclude={"preset"}) for name in PRESETS}
    assert values["standard"] == augment("").model_dump(exclude={"preset"})
    assert set(values["none"].values()) == {(1.0, 1.0), 0.0}
    assert values["light"]["colour"] < values["standard"]["colour"] < values["strong"]["colour"]
    mine = augment("preset: strong, flip: 0.25, scale: [1, 3]")
    assert (mine.flip, mine.scale, mine.noise) == (0.25, (1.0, 3.0), PRESETS["strong"]["noise"])
    assert params.Augment(preset="none").flip == 0


def sections(section: type[params.Section]) -> Iterator[type[params.Section]]:
    yield section
    for field in section.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, params.Section):
                yield from sections(part)


def test_every_field_says_what_it_is() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in sections(Params)
        for name, field in section.model_fields.items()
        # a field whose type is a section is described by that section's docstring
        if not field.description and not _is_section(field.annotation)
    ]
    assert not silent
    assert all(section.__doc__ for section in sections(Params))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, params.Section)


def test_exponents_are_numbers_as_dvc_reads_them(tmp_path: Path) -> None:
    assert load(tmp_path, changed("lr: 2e-3", "lr: 1e-4")).pretrain.lr == 1e-4


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params_file.load(ROOT / "params.yaml").seed = 2


# what is written, and every piece that the sentence must hold
MISTAKES = {
    "unknown key": ("seed: 1", "seed: 1\nbugdet: 3", ["'bugdet'", "did you mean 'budget'", "known here", "compute"]),
    "unknown nested key": (
        "lr: 2e-3}",
        "lr: 2e-3, augment: {flipp: 0.5}}",
        ["'pretrain.augment.flipp'", "did you mean 'flip'", "scale, flip, colour, blur, noise"],
    ),
    "unknown key in an optional section": ("seed: 7", "seed: 7, sky: 1", ["'prepare.town.sky'", "source, pool, test"]),
    "unknown key in a round": ("images: 20", "image: 20", ["'budget.r01.image'", "did you mean 'images'", "minutes"]),
    "wrong type": ("batch: 8, lr: 2e-3", "batch: eight, lr: 2e-3", ["pretrain.batch", "'eight'", "integer"]),
    "quoted number": ("lr: 2e-3", "lr: '2e-3'", ["pretrain.lr", "'2e-3'", "take the quotes away", "number"]),
    "a truth value is no number": ("seed: 1", "seed: true", ["seed is true", "integer"]),
    "out of range": ("method: clue", "uniform_share: 1.1", ["select.uniform_share is 1.1", "1"]),
    "not finite": ("lr: 2e-3", "lr: .inf", ["pretrain.lr is inf", "finite"]),
    "not a number": ("lr: 2e-3", "lr: .nan", ["pretrain.lr is nan"]),
    "negative seed": ("seed: 1\n", "seed: -1\n", ["seed is -1", "give 0 or more"]),
    "colour above what can be drawn": ("lr: 2e-3}", "lr: 2e-3, augment: {colour: 2}}", ["augment.colour is 2", "1"]),
    "unknown preset": ("lr: 2e-3}", "lr: 2e-3, augment: {preset: [a]}}", ["augment.preset is ['a']", "'light'"]),
    "no pixel to learn from": (
        "lr: 2e-3}",
        "lr: 2e-3, hard_pixels: 0}",
        ["pretrain.hard_pixels is 0", "give more than 0"],
    ),
    "zoom upside down": ("lr: 2e-3}", "lr: 2e-3, augment: {scale: [1.5, 0.75]}}", ["augment", "scale", "1.5", "0.75"]),
    "too narrow": ("width: 64", "width: 3", ["model.width is 3", "4"]),
    "missing": ("seed: 1\n", "", ["'seed' is missing"]),
    "size of one number": ("size: [96, 192], width", "size: [96], width", ["model.size"]),
    "unknown choice": ("method: clue", "method: best", ["select.method is 'best'", "'draw', 'best_first'"]),
    "unknown first choice": ("method: clue", "start: best", ["select.start is 'best'", "'draw', 'best_first'"]),
    "no such source": ("after: r01", "after: r00", ["r02 comes after 'r00'", "'r01'", "`r02: {after: r01, ...}`"]),
    "the source as a round": ("  r01:", "  r00:", ["'r00' is no name for a round"]),
    "a path as a round": ("  r01:", "  ../r01:", ["'../r01' is no name for a round"]),
    "round twice": ("  r02:", "  r01:", ["'r01' stands twice"]),
    "number as a round": ("  r01:", "  1:", ["the round name 1 is a int", "name it r01"]),
    "nothing as a round": ("  r01:", "  ~:", ["the round name None"]),
    "both units": ("images: 20}", "images: 20, minutes: 5}", ["budget.r01", "either images or minutes"]),
    "no unit": (", images: 20}", "}", ["budget.r01", "either images or minutes"]),
    "no images": ("images: 20", "images: 0", ["budget.r01.images is 0"]),
    "no minutes": ("images: 20", "minutes: 0", ["budget.r01.minutes is 0"]),
    "a count in quotes": ("steps: 400", "steps: '400'", ["pretrain.steps is '400'", "take the quotes away"]),
    "half an image": ("images: 20", "images: 2.5", ["budget.r01.images is 2.5", "whole number"]),
    "share in percent": ("source_share: 0.25", "source_share: 25%", ["tune.source_share is '25%'", "give a number"]),
    "nothing but replay": ("source_share: 0.25", "source_share: 1", ["tune.source_share is 1", "less than 1"]),
    "yes of YAML 1.1": ("features: true", "features: yes", ["score.features is 'yes'", "true or false"]),
    "number for a name": ("split: train", "split: 2020", ["prepare.pool.split is 2020", "in quotes"]),
    "number for a section": ("evaluate: {calibration_bins: 15}", "evaluate: 15", ["evaluate is 15", "a section"]),
    "nothing for a round": ("{after: r00, images: 20}", "", ["budget.r01 is null", "a section"]),
    "three sides": ("size: [96, 192], width", "size: [96, 192, 3], width", ["model.size", "give 2 numbers"]),
    "a size in words": ("size: [96, 192], width", "size: 96x192, width", ["model.size is '96x192'", "[512, 1024]"]),
    "misspelt acquisition": ("acquisition: shortfall", "acquisition: shortfal", ["did you mean 'shortfall'", "'ripu'"]),
    "misspelt reward": (
        "reward: pooled_miou",
        "reward: poled_miou",
        ["tune.reward.reward", "did you mean 'pooled_miou'"],
    ),
    "misspelt estimator": ("estimator: lovasz", "estimator: lovas", ["did you mean 'lovasz'", "'reinforce'"]),
    "misspelt annotator": ("annotator: oracle", "annotator: label-studio", ["did you mean 'label_studio'"]),
    "misspelt layout": (
        "dataset: gta5",
        "dataset: GTA5",
        ["prepare.source.dataset", "did you mean 'gta5'", "'camvid'"],
    ),
    "misspelt model": ("name: small", "name: deeplabv3+", ["model.name", "did you mean 'deeplabv3plus'"]),
    "misspelt encoder": (
        "name: small",
        "name: unet, encoder: resnet1010",
        ["encoder is 'resnet1010'", "did you mean 'resnet101'", "mit_b0", "tu-<name>"],
    ),
    "weights for no encoder": ("name: small", "name: small, weights: imagenet", ["`small` has no encoder", "null"]),
    "misspelt calibration": (
        "method: temperature",
        "method: temp",
        ["calibration.method", "did you mean 'temperature'"],
    ),
    "part of a precision": ("precision: 32-true", "precision: bf16", ["did you mean 'bf16-mixed'"]),
    "unknown device": ("accelerator: auto", "accelerator: tpu", ["compute.accelerator is 'tpu'", "'cuda'"]),
    "features that are not there": (
        "features: true",
        "features: false",
        ["select.method is clue", "set score.features: true", "class_stratified"],
    ),
    "features of blocks": ("features: true", "unit: block", ["select.method is clue", "block", "draw, best_first"]),
    "lovasz of Dice": ("reward: pooled_miou", "reward: dice", ["tune.reward", "lovasz", "dice", "another estimator"]),
    "comma left out": ("after: r00, images", "after: r00 images", ["line 4", "a comma between two keys is missing"]),
    "not YAML": ("seed: 1", "seed: [1", ["is not valid YAML", "line"]),
    "tab": ("seed: 1", "\tseed: 1", ["is not valid YAML", "line", "it has a tab"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_answered_with_a_sentence(name: str, tmp_path: Path) -> None:
    old, new, pieces = MISTAKES[name]
    with pytest.raises(UserError) as error:
        load(tmp_path, changed(old, new))
    sentence = str(error.value)
    assert sentence.startswith(str(tmp_path / "params.yaml"))
    assert "\n" not in sentence
    assert [piece for piece in pieces if piece not in sentence] == [], sentence


@pytest.mark.parametrize("text", ["", "- 1\n", "1\n"])
def test_a_file_that_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="object"):
        load(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(SHIPPED.encode() + b"# caf\xe9\n")
    with pytest.raises(UserError, match="not valid YAML"):
        params_file.load(tmp_path / "params.yaml")


def test_missing_file_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params\.yaml not found in .*: run in the project's root") as error:
        params_file.load()
    assert str(tmp_path) in str(error.value)


def test_a_folder_named_like_a_date_stays_a_name(tmp_path: Path) -> None:
    # YAML reads 2020-01-01 as a date; it was meant as a name
    assert load(tmp_path, changed("split: val", "split: 2020-01-01")).prepare.test.split == "2020-01-01"


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, changed("seed: 1\n", "sead: 1\n"))
    assert "'seed' is missing" in str(error.value)
    assert "unknown key 'sead': did you mean 'seed'" in str(error.value)


def test_a_budget_line_is_written_with_its_unit() -> None:
    assert str(params.BudgetLine(after="r00", images=3)) == "3 images"
    assert str(params.BudgetLine(after="r00", minutes=2.5)) == "2.5 minutes"


def test_untracked_sections_exist() -> None:
    assert set(UNTRACKED) <= {*Params.model_fields, "roots"}
    assert isinstance(Params.roots, property)


def test_unknown_member_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown colour 'gren': did you mean 'green'\? choose one of red, green"):
        choose("colour", {"red": 1, "green": 2}, "gren")
    assert choose("colour", {"red": 1, "green": 2}, "green") == 2
