"""Where every artifact lies, as functions of the round. All paths are relative to the working directory.

Never `$DVC_ROOT`: under `dvc exp run --temp` it names the parent repository.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
SETTINGS = Path("data/settings.json")
"""What params.yaml says, with the defaults of what it does not say."""
LEDGER = Path("data/ledger.jsonl")
"""Orders and deliveries, append-only, in git."""
LABELS = Path("data/labels")
"""Delivered masks, one PNG per image; tracked by `dvc add`, never a stage's output."""
LABELS_DVC = Path("data/labels.dvc")
LOCK = Path("data/stage.lock")
LABEL_STUDIO = Path("data/label_studio")
"""The local Label Studio's own folder: database, log-in, images."""
LABEL_STUDIO_VENV = Path(".venv-label-studio")
CHECKPOINTS = Path("data/checkpoints")
TOWN = Path("data/town")
MANIFESTS = Path("data/manifests")
CLASSES = Path("data/manifests/classes.csv")
"""The classes in force, in order."""
COLOURS = Path("data/manifests/colours.csv")
"""Their colours, apart from their names: a model does not depend on them."""
REGIONS = Path("data/regions")
"""Region maps, one PNG per image of the pool; empty unless score.unit is region."""
REGIONS_ABOUT = Path("data/regions/about.json")
"""What each region map was cut from."""
METRICS = Path("data/metrics")
MODELS = Path("data/models")
ROUNDS = Path("data/rounds")
REPORTS = Path("reports")
SAMPLES = Path("reports/samples")
TRAINING = Path("reports/training")
AUDITS = Path("reports/audit")
CURVE = Path("reports/curve.png")
ROUNDS_TABLE = Path("reports/rounds.csv")
SUMMARY = Path("reports/summary.json")

SOURCE_ROUND = "r00"
"""The round of the source model, before anything is bought."""


def maker(stage: str, round_name: str) -> str:
    """Name in DVC of the stage that makes an artifact of a round; those of r00 come from other stages."""
    first = {"tune": "pretrain", "evaluate": f"evaluate_source@{SOURCE_ROUND}"} | dict.fromkeys(
        ("snapshot", "annotate", "audit", "forecast"), "prepare"
    )
    return first[stage] if round_name == SOURCE_ROUND and stage in first else f"{stage}@{round_name}"


def manifest(split: str) -> Path:
    """Manifest of `source`, `pool` or `test`."""
    return MANIFESTS / f"{split}.csv"


def ids(split: str) -> Path:
    """Table from the ids that the masks of `source`, `pool` or `test` store to classes."""
    return MANIFESTS / f"{split}_ids.csv"


def images(round_name: str) -> Path:
    """The pool as it was when the round bought: rows of the pool's manifest."""
    return ROUNDS / round_name / "images.csv"


def regions(image: str) -> Path:
    """The region map of one pool image, at its own size."""
    return REGIONS / f"{image}.png"


def model(round_name: str) -> Path:
    """Folder of the model that a round ends with: `model.pt` and `log.csv`, of the source model also `weights.json`."""
    return MODELS / round_name


def weights(round_name: str) -> Path:
    """Which file of weights a model's encoder started from, by its hash."""
    return model(round_name) / "weights.json"


def scores(round_name: str) -> Path:
    """Gain and predicted minutes of every pool image, before the round's purchase."""
    return ROUNDS / round_name / "scores.csv"


def pool(round_name: str) -> Path:
    """The acquisition's statistics, per class, summed over the scored pool: what the round's gains are relative to."""
    return ROUNDS / round_name / "pool.csv"


def features(round_name: str) -> Path:
    """Feature vectors of a round's images, by which `select` compares them."""
    return ROUNDS / round_name / "features.npz"


def region_scores(round_name: str) -> Path:
    """Gain of every region of the scored images that may be bought; empty unless score.unit is region."""
    return ROUNDS / round_name / "regions.npz"


def selection(round_name: str) -> Path:
    """The images that a round buys."""
    return ROUNDS / round_name / "selection.csv"


def forecast(round_name: str) -> Path:
    """The mIoU that a round may be expected to end with."""
    return ROUNDS / round_name / "forecast.json"


def audit(round_name: str) -> Path:
    """Conclusion of a round's audit: predicted against realised gain."""
    return ROUNDS / round_name / "audit.json"


def audit_table(round_name: str) -> Path:
    """Predicted and realised gain of every image that came back in a round."""
    return ROUNDS / round_name / "audit.csv"


def predictions(round_name: str) -> Path:
    """Folder of what the model of the round before predicts for the images that a round buys."""
    return ROUNDS / round_name / "predictions"


def prediction(round_name: str, key: str) -> Path:
    """Predicted class ids of one image, at its own size."""
    return predictions(round_name) / f"{key}.png"


def gain_picture(round_name: str, key: str) -> Path:
    """Picture for annotators: the image under its gain map."""
    return predictions(round_name) / f"{key}.jpg"


def calibration(round_name: str) -> Path:
    """What calibrates the model of the round before, fitted on the labels that a round has brought."""
    return ROUNDS / round_name / "calibration.json"


def before(round_name: str) -> Path:
    """Folder for the report's panels: what the model of the round before says of the images that a round buys."""
    return ROUNDS / round_name / "before"


def predicted_before(round_name: str, key: str) -> Path:
    """Its argmax classes of the whole image, at the network's size."""
    return before(round_name) / "predicted" / f"{key}.png"


def gain_before(round_name: str, key: str) -> Path:
    """Gain of every pixel of the whole image, at the network's size, in the 256 levels that are drawn."""
    return before(round_name) / "gain" / f"{key}.png"


def after(round_name: str) -> Path:
    """Folder for the report's panels: what a round's own model says of the images that the round bought."""
    return ROUNDS / round_name / "after"


def predicted_after(round_name: str, key: str) -> Path:
    """Its argmax classes of the whole image, at the network's size."""
    return after(round_name) / f"{key}.png"


def labels(round_name: str) -> Path:
    """All labels bought up to and including a round: key, round, minutes, hash of the mask."""
    return ROUNDS / round_name / "labels.json"


def purchases(round_name: str) -> Path:
    """What was predicted of the images of all those labels when they were bought, for later rounds."""
    return ROUNDS / round_name / "purchases.json"


def mask(key: str) -> Path:
    """The delivered mask of one pool image."""
    return LABELS / f"{key}.png"


def metrics(round_name: str) -> Path:
    """Test-set measures of a round's model."""
    return METRICS / f"{round_name}.json"


def checkpoint(name: str) -> Path:
    """Checkpoint of an unfinished training, to be resumed."""
    return CHECKPOINTS / f"{name}.pt"


def confusion(round_name: str) -> Path:
    """Test-set confusion matrix of a round's model, in pixels."""
    return METRICS / f"{round_name}-confusion.csv"


def log(round_name: str) -> Path:
    """Training log of a round's model, beside the model."""
    return model(round_name) / "log.csv"


def training_curves(round_name: str) -> Path:
    """The training log as a picture."""
    return TRAINING / f"{round_name}.png"


def audit_picture(round_name: str) -> Path:
    """The audit as a picture."""
    return AUDITS / f"{round_name}.png"


def sample(round_name: str, rank: int, key: str) -> Path:
    """Panel of one bought image; rank 1 has the highest gain of its round."""
    return SAMPLES / f"{round_name}-{rank:02d}-{key}.png"
