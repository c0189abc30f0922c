"""What a step of reward tuning costs beside a step of class-weighted cross-entropy.

    python -m benchmarks.reward_cost [--size 512 1024] [--batch 2] [--model fpn] [--repeats 5]

The same network, images and labels (areas at random), 19 classes, on the CPU: forward, loss, backward, optimiser step,
alternating in one process; ratios are those of medians. A reward step is the product's: the estimator with its share
of cross-entropy. With the KL anchor, the likelihood model runs along. The peak memory is that of fresh processes.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import results
from pipeline.images.classes import CLASS_SETS
from pipeline.networks import saved
from pipeline.networks.devices import Devices
from pipeline.params import Compute, Model, Reward, Training
from pipeline.training import reward_tuning
from pipeline.training.batches import Batch
from pipeline.training.likelihood import likelihood_loss
from pipeline.training.loop import State

CLASSES = CLASS_SETS["cityscapes19"]
KINDS = {
    "cross_entropy": None,
    "counterfactual": {"estimator": "counterfactual", "kl": 0.0},
    "counterfactual with KL": {"estimator": "counterfactual", "kl": 0.02},
    "soft_iou": {"estimator": "soft_iou", "kl": 0.0},
    "lovasz": {"estimator": "lovasz", "kl": 0.0},
    "reinforce, 2 samples": {"estimator": "reinforce", "credit": "image", "kl": 0.0},
}


def stepper(kind: str, model: str, size: tuple[int, int], images: int) -> Callable[[], None]:
    """One optimiser step, to be called again and again."""
    devices = Devices.start(Compute(accelerator="cpu"))
    rng = torch.Generator().manual_seed(0)
    network = saved.new_network(Model(name=model, size=size), CLASSES, rng).train()
    weights = torch.ones(len(CLASSES.names))
    areas = torch.randint(0, len(CLASSES.names), (images, 1, size[0] // 32, size[1] // 32), generator=rng)
    masks = torch.nn.functional.interpolate(areas.float(), size)[:, 0].to(torch.uint8)
    batch = Batch.of_one_group(torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8, generator=rng), masks)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    fields = KINDS[kind]
    if fields is None:
        loss = likelihood_loss(weights, Training(steps=1, batch=images, lr=1e-5))
    else:
        settings = Reward.model_validate({"steps": 1, "lr": 1e-5} | fields)
        reward = reward_tuning.reward_function(settings, weights, CLASSES)
        anchor = saved.new_network(Model(name=model, size=size), CLASSES, rng).eval() if settings.kl else None
        loss = reward_tuning.loss_function(settings, reward, weights, network, anchor, devices)
    state: State = {}

    def step() -> None:
        nonlocal state
        result = loss(network, batch, rng, {k: v for k, v in state.items() if k != "step"} if fields else state)
        value: Tensor = result.value
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = result.state

    return step


def main() -> None:
    """Measure and write docs/results/reward_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="height and width")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--model", default="fpn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a fresh process that makes three steps and prints its peak
    given = parser.parse_args()
    size = (given.size[0], given.size[1])
    if given.peak:
        step = stepper(given.peak, given.model, size, given.batch)
        for _ in range(3):
            step()
        print(results.peak_mib())
        return
    steps = {kind: stepper(kind, given.model, size, given.batch) for kind in KINDS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(given.repeats):
        for kind, step in steps.items():
            seconds[kind].append(results.timed(step))
    words = ["--size", *map(str, size), "--batch", str(given.batch), "--model", given.model]
    peaks = {kind: peak(kind, words) for kind in KINDS}
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = {kind: median[kind] / median["cross_entropy"] for kind in KINDS}
    memory = {kind: peaks[kind] / peaks["cross_entropy"] for kind in KINDS}
    content = {
        "step_ratio": ratios["counterfactual"],
        "memory_ratio": memory["counterfactual"],
        "model": given.model,
        "size": size,
        "batch": given.batch,
        "step_ratios": ratios,
        "memory_ratios": memory,
        "seconds": seconds,
        "peak_mib": peaks,
    }
    table = [
        {
            f"step ({given.model}, MobileNetV2, {given.batch} x {size[0]}x{size[1]}, 19 classes)": kind,
            "seconds": f"{median[kind]:.2f}",
            "ratio": f"{ratios[kind]:.2f}",
            "peak MiB": f"{peaks[kind]:.0f}",
            "memory ratio": f"{memory[kind]:.2f}",
        }
        for kind in KINDS
    ]
    results.save("reward_cost", content, table)
    for row in table:
        print(row)


def peak(kind: str, words: list[str]) -> float:
    """Peak resident MiB of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.reward_cost", "--peak", kind, *words]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
