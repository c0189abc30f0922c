"""How much of each estimator's gradient is signal: cosine to the true one and variance, per estimate and at equal cost.

    python -m benchmarks.estimators [--seconds 4]

A policy that is right in about two pixels of three (logits of the truth plus smooth noise) on an image of areas, with
the running pool of twenty like it. The gradient is that of the logits. The true one is the mean of many estimates of
the exact estimator, or, for the reward that has none, of local credit; it is known to the cosine in the last column.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import results
from pipeline import estimators, rewards
from pipeline.estimators import ESTIMATORS, Problem, units
from pipeline.rewards import REWARDS

CLASSES, SIZE = 11, (60, 80)
SETTINGS = rewards.Settings(
    classes=CLASSES,
    weights=torch.ones(CLASSES, dtype=torch.float64),
    costs=1 - torch.eye(CLASSES, dtype=torch.float64),
    tolerance=1,
    overlap=0.5,
)
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("pooled_miou", "counterfactual", {}),
    ("pooled_miou", "soft_iou", {}),
    ("pooled_miou", "lovasz", {}),
    ("pooled_miou", "reward_weighted", {}),
    *(
        ("pooled_miou", "reinforce", {"samples": samples, "baseline": baseline})
        for samples, baseline in (
            (1, "none"),
            (1, "rolling_mean"),
            (2, "two_sample"),
            (2, "leave_one_out"),
            (8, "leave_one_out"),
        )
    ),
    ("pooled_miou", "reinforce", {"samples": 8, "unit": "patch"}),
    ("pooled_miou", "reinforce", {"samples": 8, "unit": "superpixel"}),
    ("pooled_miou", "reinforce", {"samples": 8, "credit": "local"}),
    ("pooled_miou", "ppo", {"samples": 8}),
    ("boundary_f1", "reinforce", {"samples": 8}),
    ("boundary_f1", "reinforce", {"samples": 2, "credit": "local"}),
    ("boundary_f1", "reinforce", {"samples": 8, "credit": "local"}),
]


def main() -> None:
    """Measure and write docs/results/estimators.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="that each estimator may spend on one gradient")
    given = parser.parse_args()
    rng = torch.Generator().manual_seed(0)
    areas = torch.randint(0, CLASSES, (1, 1, SIZE[0] // 10, SIZE[1] // 10), generator=rng).float()
    truth = F.interpolate(areas, SIZE)[:, 0].to(torch.uint8)
    noise = F.interpolate(torch.randn(1, CLASSES, SIZE[0] // 5, SIZE[1] // 5, generator=rng), SIZE, mode="bilinear")
    logits = 1.5 * F.one_hot(truth.long(), CLASSES).permute(0, 3, 1, 2) + 1.2 * noise
    image = (40 * areas[0].repeat(3, 1, 1)).clamp(max=255).to(torch.uint8)[None]
    image = F.interpolate(image.float(), SIZE).to(torch.uint8)
    right = float((logits.argmax(1) == truth).double().mean())

    def gradient(reward: str, estimator: str, how: dict[str, Any]) -> Callable[[], Tensor]:
        made = REWARDS[reward].make(SETTINGS)
        memory = 20 * made.statistics(units.sample(logits, rng), truth).sum(0)
        member = ESTIMATORS[estimator].make(estimators.Settings(**{k: v for k, v in how.items() if k != "unit"}))
        segments = None
        if how.get("unit"):
            segments = units.patches(truth, 5) if how["unit"] == "patch" else units.superpixels(image, 5)

        def once() -> Tensor:
            leaf = logits.clone().requires_grad_()
            loss = member(leaf, Problem(truth, made, memory, rng, segments)).loss
            return torch.autograd.grad(loss, leaf)[0].flatten().double()

        return once

    rows = []
    true: dict[str, Tensor] = {}
    known: dict[str, float] = {}
    for reward, best in (("pooled_miou", ROWS[0]), ("boundary_f1", ROWS[-1])):
        once = gradient(*best)
        halves = [torch.stack([once() for _ in range(200)]).mean(0) for _ in range(2)]
        true[reward] = (halves[0] + halves[1]) / 2
        known[reward] = float(F.cosine_similarity(halves[0], halves[1], dim=0))
    for reward, estimator, how in ROWS:
        once, target = gradient(reward, estimator, how), true[reward]
        if how.get("unit"):
            # Another policy, whose gradient is constant within a segment: held against the true one, averaged there.
            segments = units.patches(truth, 5) if how["unit"] == "patch" else units.superpixels(image, 5)
            target = units.field(target.view_as(logits).float(), segments).flatten().double()
        once()
        start = time.perf_counter()
        estimates = [once()]
        while time.perf_counter() - start < given.seconds or len(estimates) < 8:
            estimates.append(once())
        spent = (time.perf_counter() - start) / len(estimates)
        stack = torch.stack(estimates[:400])
        within = round(given.seconds / spent)
        mean = torch.stack(estimates[: max(1, within)]).mean(0)
        rows.append(
            {
                "reward": reward,
                "estimator": estimator,
                "samples": 0,
                "baseline": "-",
                "credit": "-",
                "unit": "pixel",
                **({"baseline": "leave_one_out", "credit": "image"} if estimator in ("reinforce", "ppo") else {}),
                **({"samples": 1} if estimator == "counterfactual" else {}),
                **how,
                "cosine": float(F.cosine_similarity(stack[0], target, dim=0)),
                "cosine_mean": float(F.cosine_similarity(stack, target[None]).mean()),
                "variance": float(stack.var(0).sum() / target.square().sum()),
                "ms": 1000 * spent,
                "cosine_at_equal_cost": float(F.cosine_similarity(mean, target, dim=0)),
                "estimates_at_equal_cost": len(estimates[: max(1, within)]),
            }
        )
        print(rows[-1], flush=True)
    table = [
        {
            **{k: row[k] for k in ("reward", "estimator", "samples", "baseline", "credit", "unit")},
            "cosine of one estimate": f"{row['cosine_mean']:.3f}",
            "variance / squared norm": f"{row['variance']:.3g}",
            "ms": f"{row['ms']:.0f}",
            f"cosine within {given.seconds:g} s": f"{row['cosine_at_equal_cost']:.3f}",
            "true gradient known to": f"{known[row['reward']]:.4f}",
        }
        for row in rows
    ]
    results.save("estimators", {"pixels_right": right, "known_to": known, "rows": rows}, table)


if __name__ == "__main__":
    main()
