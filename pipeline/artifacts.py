"""Load and save each kind of artifact: the only file that knows formats. Writing is atomic, loading checks.

A reader never sees half a file: everything is written under a temporary name beside its place, flushed to the disk
and renamed. torch, pandas and OpenCV are imported by the functions that need them, so that the light commands start at
once.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64, UInt8

from pipeline import paths, storage
from pipeline.errors import UserError
from pipeline.images.classes import CLASS_SETS, IGNORE, UNKNOWN, ClassSet
from pipeline.images.masks import load_made

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

MANIFEST_COLUMNS = ("key", "image", "mask", "height", "width", "sha256", "mask_sha256")
CLASS_COLUMNS = ("id", "name")
COLOUR_COLUMNS = ("name", "red", "green", "blue")
SCORE_COLUMNS = ("key", "gain", "minutes")
SELECTION_COLUMNS = ("key", "gain", "minutes", "probability", "method")
COST_COLUMNS = ("key", "regions", "boundary", "corrections")
AUDIT_COLUMNS = ("key", "probability", "predicted")


FILES = ("image", "mask")
"""Columns of a manifest that are paths."""
IGNORED = "ignore"
"""Name of IGNORE in tables from ids to names."""


def save_manifest(split: str, frame: "pd.DataFrame") -> None:
    """Write the manifest of `source`, `pool` or `test`: one row per image, files by their paths below the root."""
    storage.save_table(paths.manifest(split), frame, MANIFEST_COLUMNS)


def load_manifest(split: str, root: Path = Path()) -> "pd.DataFrame":
    """Columns key, image, mask (empty if none), height, width, sha256, mask_sha256 (empty: closed, or none).

    The source also `n_<class>`. With the root of the data, image and mask are paths that can be opened.
    """
    return _below(root, storage.load_table(paths.manifest(split), MANIFEST_COLUMNS, "prepare"))


def save_images(round_name: str, frame: "pd.DataFrame") -> None:
    """Write the pool as a round has it: a table of rows of the pool's manifest."""
    storage.save_table(paths.images(round_name), frame, MANIFEST_COLUMNS)


def load_images(round_name: str, root: Path = Path()) -> "pd.DataFrame":
    """The pool as a round has it, with `load_manifest`'s columns; the present pool if the round has none on record."""
    path = paths.images(round_name)
    if not path.is_file():
        return load_manifest("pool", root)
    return _below(root, storage.load_table(path, MANIFEST_COLUMNS, paths.maker("snapshot", round_name)))


def _below(root: Path, frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame.assign(**{name: [(root / path).as_posix() if path else "" for path in frame[name]] for name in FILES})


def save_classes(classes: ClassSet) -> None:
    """Write the class set in force."""
    import pandas as pd

    frame = pd.DataFrame({"id": range(len(classes.names)), "name": classes.names})
    storage.save_table(paths.CLASSES, frame, CLASS_COLUMNS)
    colours = pd.DataFrame(classes.colours, columns=list(COLOUR_COLUMNS[1:]))
    colours.insert(0, "name", classes.names)
    storage.save_table(paths.COLOURS, colours, COLOUR_COLUMNS)


def load_classes() -> ClassSet:
    """The class set in force; its name is that of a built-in set if it has the same classes."""
    names = tuple(name for _, (name,) in sorted(storage.load_class_table(paths.CLASSES, CLASS_COLUMNS).items()))
    colours = storage.load_class_table(paths.COLOURS, COLOUR_COLUMNS)
    name = next((name for name, known in CLASS_SETS.items() if known.names == names), paths.CLASSES.as_posix())
    return ClassSet(name, names, tuple(colours[each] for each in names))


def save_ids(split: str, table: UInt8[np.ndarray, "256"], classes: ClassSet) -> None:
    """Write the table from the ids that the masks of a set store to classes."""
    import pandas as pd

    known = np.flatnonzero(table != UNKNOWN)
    names = [IGNORED if table[number] == IGNORE else classes.names[table[number]] for number in known]
    storage.save_table(paths.ids(split), pd.DataFrame({"id": known, "name": names}), CLASS_COLUMNS)


def load_ids(split: str, classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    """Table from the ids that the masks of a set store to class ids, IGNORE or UNKNOWN."""
    path, table = paths.ids(split), np.full(256, UNKNOWN, np.uint8)
    for number, (name,) in storage.load_class_table(path, CLASS_COLUMNS).items():
        if name not in (*classes.names, IGNORED):
            raise UserError(f"{path} has the class {name!r}, which {paths.CLASSES} has not: run `dvc repro -f prepare`")
        table[number] = IGNORE if name == IGNORED else classes.names.index(name)
    return table


def save_scores(round_name: str, frame: "pd.DataFrame") -> None:
    """Write gain and predicted minutes, one row per pool image that is not labelled yet."""
    storage.save_table(paths.scores(round_name), frame, SCORE_COLUMNS)


def load_scores(round_name: str) -> "pd.DataFrame":
    """Columns key, gain, minutes, `gain_<class>`, and the features that the minutes are predicted from."""
    return storage.load_table(paths.scores(round_name), SCORE_COLUMNS, paths.maker("score", round_name))


class Features(NamedTuple):
    """Feature vectors of m images of the pool, bought or not; m = 0 where `score.features` is false."""

    keys: list[str]
    image: Float32[np.ndarray, "m d"]
    """One vector per image."""
    by_class: Float16[np.ndarray, "m c d"]
    """One per image and class, 0 where the image shows none of it."""
    gradient: Float32[np.ndarray, "m g"]
    """BADGE's gradient embedding."""
    holds: Float32[np.ndarray, "m c"]
    """Pixels of every class, as a multiple of the pool's mean image: labelled ones; expected ones without a label."""
    iou: Float64[np.ndarray, " c"]
    """Expected IoU of every class in the pool, in [0, 1]."""

    @classmethod
    def none(cls) -> "Features":
        """Empty features, where score.features is false."""
        flat = np.zeros((0, 0), np.float32)
        return cls([], flat, np.zeros((0, 0, 0), np.float16), flat, flat, np.zeros(0))


def save_features(round_name: str, features: Features) -> None:
    """Write the features of the scored images and of those bought before."""
    _check_features(paths.features(round_name), features)
    storage.save_arrays(paths.features(round_name), {**features._asdict(), "keys": np.array(features.keys, dtype=str)})


def load_features(round_name: str) -> Features:
    """Features of the images that a round scored and of those bought before."""
    path = paths.features(round_name)
    arrays = storage.load_arrays(path, Features._fields, paths.maker("score", round_name))
    features = Features(arrays[0].tolist(), *arrays[1:])
    _check_features(path, features)
    return features


def _check_features(path: Path, features: Features) -> None:
    keys, *arrays, iou = features
    kinds = [(len(array), array.ndim, array.dtype) for array in arrays]
    m = len(keys)
    if kinds != [(m, 2, np.float32), (m, 3, np.float16), (m, 2, np.float32), (m, 2, np.float32)]:
        raise UserError(f"{path}: features of {m} images have the lengths, dimensions and types {kinds}: make it again")
    if iou.shape != features.holds.shape[1:] or not ((iou >= 0) & (iou <= 1)).all():
        raise UserError(f"{path}: the IoU of {features.holds.shape[1]} classes is {iou.tolist()}: make it again")
    if len(set(keys)) < m:
        raise UserError(f"{path}: the key {max(keys, key=keys.count)!r} stands twice")
    for name, array in zip(Features._fields[1:-1], arrays, strict=True):
        finite = [bool(np.isfinite(row).all()) for row in array]
        if not all(finite):
            raise UserError(f"{path}: a value in {name} of {keys[finite.index(False)]!r} is not finite")


def load_costs(round_name: str) -> "pd.DataFrame":
    """The scores' columns key, regions, boundary and corrections."""
    frame = storage.load_table(paths.scores(round_name), COST_COLUMNS, paths.maker("score", round_name))
    return frame[list(COST_COLUMNS)]


def save_selection(round_name: str, frame: "pd.DataFrame") -> None:
    """Write the images that a round buys."""
    storage.save_table(paths.selection(round_name), frame, SELECTION_COLUMNS)


def load_selection(round_name: str) -> "pd.DataFrame":
    """Columns key, gain, minutes, probability, the method that chose the image (empty: not on record), and regions.

    The last are those of an image that are asked about, "3 17 42"; empty where the unit is another.
    """
    frame = storage.load_table(paths.selection(round_name), SELECTION_COLUMNS, paths.maker("select", round_name))
    return frame.assign(regions=frame["regions"].astype(str) if "regions" in frame else "")


def save_pool(
    round_name: str, names: Sequence[str], statistics: Sequence[str], sums: Float64[np.ndarray, "c s"]
) -> None:
    """Write the acquisition's statistics, per class, summed over the scored pool: what the gains are relative to."""
    import pandas as pd

    frame = pd.DataFrame(sums, columns=list(statistics))
    frame.insert(0, "key", list(names))
    storage.save_table(paths.pool(round_name), frame, ("key",))


def load_pool(round_name: str) -> Float64[np.ndarray, "c s"]:
    """Statistics of the scored pool, per class."""
    frame = storage.load_table(paths.pool(round_name), ("key",), paths.maker("score", round_name))
    sums: np.ndarray = frame.drop(columns="key").to_numpy(dtype=float)
    return sums


def save_audit(round_name: str, frame: "pd.DataFrame", content: Mapping[str, Any]) -> None:
    """Write a round's audit: a table with one row per image that came back, and the conclusion."""
    storage.save_table(paths.audit_table(round_name), frame, AUDIT_COLUMNS)
    storage.save_json(paths.audit(round_name), content)


def load_audit_table(round_name: str) -> "pd.DataFrame":
    """Columns key, probability, predicted and `predicted_<class>`; also realised ones where they can be computed."""
    return storage.load_table(paths.audit_table(round_name), AUDIT_COLUMNS, paths.maker("audit", round_name))


def load_audit(round_name: str) -> dict[str, Any]:
    """The audit's conclusion; `signal` is None without a verdict. That of r00 comes from the stage `prepare`."""
    content: dict[str, Any] = storage.load_json(paths.audit(round_name), paths.maker("audit", round_name))
    return content


def load_judged(round_name: str) -> list[list[list[float]]]:
    """The predicted and the realised gains of each round that a verdict rests on, oldest first; none of r00."""
    judged: list[list[list[float]]] = _field(load_audit(round_name), "judged", paths.audit(round_name), "audit")
    return judged


def load_forecast(round_name: str) -> dict[str, Any]:
    """The mIoU that the round may be expected to end with, and its interval: expected, low, high, in [0, 1]."""
    content: dict[str, Any] = storage.load_json(paths.forecast(round_name), paths.maker("forecast", round_name))
    return content


def load_measured(round_name: str) -> dict[str, float]:
    """The mIoU of every round's model before a forecast, in [0, 1]; none before r00."""
    path = paths.forecast(round_name)
    measured: dict[str, float] = _field(load_forecast(round_name), "measured", path, "forecast")
    return measured


def save_metrics(
    round_name: str, content: Mapping[str, Any], names: Sequence[str], confusion: Int64[np.ndarray, "c c"]
) -> None:
    """Write a round's measures, and its confusion matrix (rows: truth, columns: prediction, in pixels)."""
    import pandas as pd

    storage.write(
        paths.confusion(round_name), pd.DataFrame(confusion, names, names).to_csv(index_label="truth").encode()
    )
    storage.save_json(paths.metrics(round_name), content)


def load_metrics(round_name: str) -> dict[str, Any]:
    """A round's measures on the test set."""
    content: dict[str, Any] = storage.load_json(paths.metrics(round_name), paths.maker("evaluate", round_name))
    return content


def load_miou_share(round_name: str) -> float:
    """The mIoU of a round's model on the test set, in [0, 1]; gains and forecasts count in points, 100 times that."""
    return float(load_metrics(round_name)["miou"])


def save_report(rounds: "pd.DataFrame") -> None:
    """Write the table of all rounds, and the first and last of it as a metrics file."""
    storage.write(paths.ROUNDS_TABLE, rounds.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode())
    first, last = rounds.iloc[0], rounds.iloc[-1]
    summary = {
        "round": str(last["round"]),
        "labels": int(last["labels"]),
        "minutes": float(last["minutes"]),
        "miou": float(last["miou"]),
        "miou_gained": float(last["miou"] - first["miou"]),
    }
    storage.save_json(paths.SUMMARY, summary)


def _field(content: Mapping[str, Any], name: str, path: Path, stage: str) -> Any:
    if name not in content:
        raise storage.damaged(
            path, f"it lacks {name!r}, as one of an earlier version", paths.maker(stage, path.parent.name)
        )
    return content[name]


def save_labels(round_name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write which labels exist after a round; each row has key, round, minutes and sha256 of the mask."""
    storage.save_json(paths.labels(round_name), list(rows))


def save_purchases(round_name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was predicted of every image bought up to and including a round, for later rounds."""
    storage.save_json(paths.purchases(round_name), list(rows))


def load_purchases(round_name: str) -> dict[str, dict[str, Any]]:
    """By key, for all labels bought up to and including a round: `gain` and COST_COLUMNS.

    Both as predicted when it was ordered; COST_COLUMNS are missing where the scores of its round lack them.
    """
    rows: list[dict[str, Any]] = storage.load_json(paths.purchases(round_name), paths.maker("annotate", round_name))
    return {row["key"]: row for row in rows}


def load_labels(round_name: str) -> list[dict[str, Any]]:
    """All labels bought up to and including a round, in order of delivery."""
    rows: list[dict[str, Any]] = storage.load_json(paths.labels(round_name), paths.maker("annotate", round_name))
    return rows


def load_prediction(round_name: str, key: str) -> UInt8[np.ndarray, "h w"]:
    """The class ids that the model of the round before predicts for a bought image, at the image's own size."""
    return load_made(paths.prediction(round_name, key), paths.maker("predict", round_name))


def load_before(round_name: str, key: str) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """For a panel: what the model of the round before predicts, and levels of gain, at the network's size."""
    files, maker = (paths.predicted_before, paths.gain_before), paths.maker("predict", round_name)
    predicted, gain = (load_made(file(round_name, key), maker) for file in files)
    return predicted, gain


def load_after(round_name: str, key: str) -> UInt8[np.ndarray, "h w"]:
    """For a panel: what the round's own model predicts, at the network's size."""
    return load_made(paths.predicted_after(round_name, key), paths.maker("tune", round_name))


def save_calibration(round_name: str, content: Mapping[str, Sequence[float]]) -> None:
    """Write what calibrates the model of the round before, as `Calibration.lists` has it."""
    storage.save_json(paths.calibration(round_name), dict(content))


def load_calibration(round_name: str) -> dict[str, list[float]]:
    """What calibrates the model of the round before; it is kept beside the round's own model, too."""
    path = paths.calibration(round_name)
    content: dict[str, list[float]] = storage.load_json(path, paths.maker("audit", round_name))
    return content


def save_model(round_name: str, state: Mapping[str, "Tensor"], about: Mapping[str, Any]) -> None:
    """Write a model: its weights, and their description (`networks.saved.describe`)."""
    import torch

    buffer = io.BytesIO()  # straight to a path, torch would write the temporary file's name into the archive
    torch.save({"about": dict(about), "state": {k: v.detach().cpu() for k, v in state.items()}}, buffer)
    storage.write(paths.model(round_name) / "model.pt", buffer.getvalue())


def load_model(round_name: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Weights and description of a round's model, on the CPU."""
    import torch

    path = paths.model(round_name) / "model.pt"
    maker = paths.maker("tune", round_name)
    if not path.is_file():
        raise storage.missing(path, maker)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["state"], content["about"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise storage.damaged(path, " ".join(str(error).split())[:80], maker) from None


def save_log(round_name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the training log beside the model."""
    import pandas as pd

    text = pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n", float_format="%.9g")
    storage.write(paths.log(round_name), text.encode())


def load_log(round_name: str) -> list[dict[str, float]]:
    """The rows of the training log, each with the signals that it has a value of; none if nothing was trained."""
    path, maker = paths.log(round_name), paths.maker("tune", round_name)
    if not path.is_file():
        raise storage.missing(path, maker)
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=float)
    except pd.errors.EmptyDataError:  # no step was asked for
        return []
    except ValueError as error:
        raise storage.damaged(path, " ".join(str(error).split()), maker) from None
    if "step" not in frame.columns or np.isinf(frame.to_numpy()).any():
        raise storage.damaged(path, "it has no column step, or a value that is not finite", maker)
    return [{str(name): value for name, value in row.items() if value == value} for row in frame.to_dict("records")]
