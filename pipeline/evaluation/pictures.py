"""Pictures: the curve of the rounds, training logs, audits, a panel per bought image, gain maps laid over images.

Matplotlib takes 2 s to import, so the functions that draw with it import it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation import planner
from pipeline.evaluation.curve import LEVEL
from pipeline.evaluation.planner import Curves
from pipeline.images import resizing
from pipeline.images.classes import IGNORE, ClassSet, colourise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP, HEADER = 6, 44
"""Pixels between the pictures of a panel, and above them for the captions."""
LONGEST = 1024
"""Longer side, at most, of a picture for the browser, pixels."""
SEEN_AHEAD = 2.0
"""Times what is bought up to which curves are drawn, unless the target asks for more."""
STYLES = ("-", "--", "-.", ":")
STAGES = {0: ("by likelihood", "#1f6f8b"), 1: ("for the reward", "#c8553d")}
"""Stages of a training log: what they train by, and their colour."""
SIGNALS = {
    "loss": "loss",
    "lr": "learning rate",
    "reward": "reward",
    "reward_std": "spread of the reward",
    "advantage_std": "spread of the advantage",
    "gradient_cosine": "agreement of two half-batch gradients",
    "cross_entropy": "cross-entropy",
    "kl": "KL from the likelihood model",
    "entropy": "entropy of the predictions",
    "validation": "validation",
}
"""Captions of the columns of a training log; others are shown under their own name."""


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def panel(
    *,
    image: UInt8[np.ndarray, "h w 3"],
    truth: UInt8[np.ndarray, "h w"],
    before: UInt8[np.ndarray, "h w"],
    after: UInt8[np.ndarray, "h w"],
    gain: UInt8[np.ndarray, "h w"],
    classes: ClassSet,
    title: str,
) -> bytes:
    """Image, prediction, gain map, label and prediction after training, side by side, as a PNG file.

    The gain map, in `gain_levels`, runs from dark (nothing to gain) to bright (the image's 99th percentile). Where the
    label is IGNORE, label and predictions are greyed out in the pictures alike.
    """
    height, width = truth.shape
    zoom = max(1, round(240 / height))
    pictures = {
        "image": image,
        f"prediction before ({_right(before, truth):.0%} right)": colourise(before, classes),
        "gain map (bright: label this)": _heat(gain),
        "label": colourise(truth, classes),
        f"prediction after ({_right(after, truth):.0%} right)": colourise(after, classes),
    }
    tall, wide = height * zoom, width * zoom
    sheet = Image.new("RGB", (len(pictures) * (wide + GAP) - GAP, tall + HEADER), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    draw.text((2, 2), title, "black", font)
    for place, (caption, picture) in enumerate(pictures.items()):
        left = place * (wide + GAP)
        draw.text((left + 2, HEADER // 2), caption, "black", font)
        grown = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_NEAREST)
        sheet.paste(Image.fromarray(grown), (left, HEADER))
    return png(np.asarray(sheet))


def gain_overlay(image: UInt8[np.ndarray, "h w 3"], gain: Float[np.ndarray, "h2 w2"]) -> bytes:
    """The image, grey and darkened, under its gain map, as a JPEG file of at most LONGEST pixels a side.

    The heat is a panel's: dark where there is nothing to gain, bright from the image's 99th percentile on.
    """
    height, width = image.shape[:2]
    zoom = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    grey = cv2.cvtColor(resizing.resize(image, size), cv2.COLOR_RGB2GRAY)[..., None]
    # With these weights the darkest pixel of highest gain is still brighter than a white one without gain.
    picture = 0.35 * grey + 0.65 * resizing.resize(_heat(gain_levels(gain)), size)
    buffer = io.BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def gain_levels(gain: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """A gain map as it is drawn, from 0 (nothing to gain) to 255 (the map's 99th percentile and above)."""
    top = max(float(np.quantile(gain, 0.99)), 1e-12)
    levels: np.ndarray = np.minimum(np.clip(gain / top, 0, 1) * 256, 255).astype(np.uint8)
    return levels


def _heat(levels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """From dark (nothing to gain) to bright."""
    import matplotlib as mpl

    heat: np.ndarray = (mpl.colormaps["inferno"](levels)[..., :3] * 255).astype(np.uint8)
    return heat


def _right(prediction: UInt8[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"]) -> float:
    known = truth != IGNORE
    return float((prediction[known] == truth[known]).mean()) if known.any() else 0.0


def curve(
    amounts: Sequence[float | int],
    miou_shares: Sequence[float],
    names: Sequence[str],
    unit: str = "images",
    curves: Curves | None = None,
    target_points: float | None = None,
) -> bytes:
    """The mIoU against what was bought, one point per round, as a PNG file; drawn in points.

    Amounts are labels, or minutes if there are `curves` of what is to come: each family's, and the interval of what
    rounds will measure. The target is a line across.
    """
    figure = _figure(7.0, 4.0)
    axes = figure.subplots()
    if target_points is not None:
        axes.axhline(target_points, color="#c8553d", linestyle="--", linewidth=1.2, label=f"target {target_points:g}")
    if curves is not None:
        first = next(amount for amount in amounts if amount > 0)
        ahead = curves.bought * SEEN_AHEAD
        if target_points is not None and math.isfinite(need := planner.plan(curves, target_points).expected):
            ahead = min(max(ahead, 1.15 * need), 10 * curves.bought)
        shown = np.linspace(first, ahead, 120)
        low, _, high = curves.measured(shown)
        axes.fill_between(shown, low, high, color="#1f6f8b", alpha=0.12, linewidth=0, label=f"{LEVEL:.0%} interval")
        for (family, line), style in zip(curves.by_family(shown).items(), STYLES, strict=False):
            axes.plot(shown, line, color="#5b6770", linestyle=style, linewidth=1, label=family)
    if target_points is not None or curves is not None:
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    points = [100 * value for value in miou_shares]
    axes.plot(list(amounts), points, marker="o", color="#1f6f8b", linewidth=2)
    for x, y, name in zip(amounts, points, names, strict=True):
        axes.annotate(f"{name}: {y:.1f}", (x, y), textcoords="offset points", xytext=(8, -12), fontsize=9)
    axes.margins(x=0.16 if curves is None else 0.05, y=0.12)
    bought = f"{unit} labelled" if curves is None else "minutes of annotators' time"
    axes.set(xlabel=bought, ylabel="mIoU on the test set, points", title="What the labels brought")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure)


def audit(
    frame: Mapping[str, Float[np.ndarray, " n"]], classes: ClassSet, fit: tuple[float, float] | None, title: str
) -> bytes:
    """Predicted against realised gain of a round's images, and of its classes, as a PNG file.

    Args:
        frame: `predicted` and `realised` of n images, and `predicted_<class>` and `realised_<class>` of every class.
        classes: the classes.
        fit: intercept and slope of the line through the images, if there is one.
        title: what the audit concludes.
    """
    figure = _figure(10.0, 4.4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    x, y = frame["predicted"], frame["realised"]
    top = 1.05 * max(float(x.max()), float(y.max()), 1e-9)
    left.plot([0, top], [0, top], color="0.6", linestyle=":", label="as predicted")
    if fit is not None:
        fitted = fit[0] + fit[1] * np.array([0, top])
        left.plot([0, top], fitted, color=STAGES[1][1], linewidth=1.6, label=f"fitted, slope {fit[1]:.2f}")
    left.plot(x, y, "o", color=STAGES[0][1], alpha=0.8, markersize=5)
    left.set(xlim=(0, top), ylim=(0, top), xlabel="gain predicted, mIoU points", ylabel="gain realised, mIoU points")
    left.set_title("Images", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=9)

    sums = {name: [float(frame[f"{name}_{c}"].sum()) for c in classes.names] for name in ("predicted", "realised")}
    order = np.argsort([max(pair) for pair in zip(*sums.values(), strict=True)], kind="stable")
    places = np.arange(len(order))
    for offset, (name, values), colour in zip((0.2, -0.2), sums.items(), (STAGES[0][1], STAGES[1][1]), strict=True):
        right.barh(places + offset, np.array(values)[order], 0.38, color=colour, label=name)
    right.set_yticks(places, [classes.names[place] for place in order], fontsize=8)
    right.set(xlabel="gain of the round's images, mIoU points")
    right.set_title("Classes", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure)


def training_curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Every column of a training log in a panel of its own over the steps, as a PNG file.

    Args:
        rows: `step`, and whatever else was logged, stage after stage (`stage` 0: likelihood, 1: reward; without it 0).
            Each stage counts its own steps; here the second goes on where the first ends.
    """
    from matplotlib.lines import Line2D

    columns = dict.fromkeys(column for row in rows for column in row)
    signals = [name for name in SIGNALS if name in columns]
    signals += [name for name in columns if name not in SIGNALS and name not in ("stage", "step")]
    known = [stage for stage in STAGES if any(row.get("stage", 0) == stage for row in rows)]
    ends = {stage: max(row["step"] for row in rows if row.get("stage", 0) == stage) for stage in known}
    starts = {stage: sum(ends[earlier] for earlier in known if earlier < stage) for stage in known}

    wide = max(1, min(3, len(signals)))
    high = max(1, -(-len(signals) // wide))
    figure = _figure(max(4.5, 3.6 * wide), 2.2 * high + 0.7)
    figure.suptitle("How training went" if signals else "Nothing was trained", x=0.01, ha="left", fontsize=12)
    panels = figure.subplots(high, wide, squeeze=False, sharex=True)
    for place, axes in enumerate(panels.flat):
        if place >= len(signals):
            axes.remove()
            continue
        name = signals[place]
        for stage in known:
            seen = [row for row in rows if row.get("stage", 0) == stage and name in row]
            steps, values = [starts[stage] + row["step"] for row in seen], [row[name] for row in seen]
            marker = "o" if len(seen) < 12 else ""
            axes.plot(steps, values, color=STAGES[stage][1], linewidth=1.6, marker=marker, markersize=4)
            if starts[stage]:
                axes.axvline(starts[stage], color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(SIGNALS.get(name, name.replace("_", " ")), loc="left", fontsize=10)
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.tick_params(labelsize=8)
        if place + wide >= len(signals):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=STAGES[stage][1], linewidth=2, label=STAGES[stage][0]) for stage in known]
    if lines:
        figure.legend(handles=lines, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=10)
    return _saved(figure)


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _saved(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
