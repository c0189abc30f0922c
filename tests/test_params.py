from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipeline import datasets, params, params_file
from pipeline.acquisitions import ACQUISITIONS
from pipeline.annotators import ANNOTATORS
from pipeline.calibration import CALIBRATIONS
from pipeline.errors import UserError, choose
from pipeline.models import MODELS
from pipeline.params import Params
from pipeline.policy import ESTIMATORS
from pipeline.rewards import REWARDS
from pipeline.selection import METHODS
from pipeline.transforms import MIXES
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
    offered = {
        params.Calibration.model_fields["method"]: CALIBRATIONS,
        params.Select.model_fields["method"]: METHODS,
        params.Training.model_fields["mix"]: MIXES,
        params.Augment.model_fields["preset"]: params.PRESETS,
    }
    assert all(set(get_args(field.annotation)) == set(names) for field, names in offered.items())


def test_preset_is_where_augment_starts_from(tmp_path: Path) -> None:
    def augment(text: str) -> params.Augment:
        return load(tmp_path, changed("lr: 2e-3}", f"lr: 2e-3, augment: {{{text}}}}}")).pretrain.augment

    values = {name: augment(f"preset: {name}").model_dump(exclude={"preset"}) for name in params.PRESETS}
    assert values["standard"] == augment("").model_dump(exclude={"preset"})
    assert set(values["none"].values()) == {(1.0, 1.0), 0.0}
    assert values["light"]["colour"] < values["standard"]["colour"] < values["strong"]["colour"]
    mine = augment("preset: strong, flip: 0.25, scale: [1, 3]")
    assert (mine.flip, mine.scale, mine.noise) == (0.25, (1.0, 3.0), params.PRESETS["strong"]["noise"])
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
    "quoted number": ("lr: 2e-3", "lr: '2e-3'", ["pretrain.lr", "'2e-3'", "number"]),
    "a truth value is no number": ("seed: 1", "seed: true", ["seed is True", "integer"]),
    "out of range": ("method: clue", "uniform_share: 1.1", ["select.uniform_share is 1.1", "1"]),
    "not finite": ("lr: 2e-3", "lr: .inf", ["pretrain.lr is inf", "finite"]),
    "not a number": ("lr: 2e-3", "lr: .nan", ["pretrain.lr is nan"]),
    "negative seed": ("seed: 1\n", "seed: -1\n", ["seed is -1", "greater than or equal to 0"]),
    "colour above what can be drawn": ("lr: 2e-3}", "lr: 2e-3, augment: {colour: 2}}", ["augment.colour is 2", "1"]),
    "unknown preset": ("lr: 2e-3}", "lr: 2e-3, augment: {preset: [a]}}", ["augment.preset is ['a']", "'light'"]),
    "no pixel to learn from": ("lr: 2e-3}", "lr: 2e-3, hard_pixels: 0}", ["pretrain.hard_pixels is 0", "greater"]),
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
    "not YAML": ("seed: 1", "seed: [1", ["is not valid YAML", "line"]),
    "tab": ("seed: 1", "\tseed: 1", ["is not valid YAML", "line"]),
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
    assert set(params.UNTRACKED) <= {*Params.model_fields, "roots"}
    assert isinstance(Params.roots, property)


def test_unknown_member_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown colour 'gren': choose one of red, green"):
        choose("colour", {"red": 1, "green": 2}, "gren")
    assert choose("colour", {"red": 1, "green": 2}, "green") == 2
