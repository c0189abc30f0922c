"""Does the bank rank methods as the full study does?

    python -m benchmarks.gain_agreement

Of every method that goes by a score of sets which the bank has judged: the score's rank correlation over the bank's
random sets of eight, and the study's mean mIoU at eight labels and mean area. Both are read from docs/results
(benchmarks/gain_bank.py, benchmarks/gain.py); nothing is trained. Spearman's rank correlation over the methods, with
its p by permutation, says how far the bank can be trusted to choose between methods. The bank's scores are of the
source model, the study's later purchases of the models that came of it.
"""

import argparse
import statistics

import numpy as np
from scipy.stats import permutation_test, spearmanr

from benchmarks import results

SCORES = {
    "entropy": "sum of entropy",
    "margin": "sum of margin",
    "least_confidence": "sum of least_confidence",
    "bald": "sum of bald",
    "ripu": "sum of ripu",
    "shortfall_best_first": "sum of shortfall",
    "coreset": "distance between features",
    "badge": "distance between gradients",
    "coverage": "coverage of shortfall",
    "representative": "representative",
    "learning": "learning curves",
}
"""What each acquisition of the study maximises, as the bank calls it; those that draw maximise nothing."""
IMAGES = 8


def main() -> None:
    """Write docs/results/gain_agreement.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bank = {row["score"]: row for row in results.load("gain_bank")["scores"]}
    study = results.load("gain_camvid")
    rows = []
    for acquisition, score in SCORES.items():
        at = [r["miou"] for r in study["rows"] if (r["acquisition"], r["images"]) == (acquisition, IMAGES)]
        if len(at) > 1:
            rows.append(
                {
                    "acquisition": acquisition,
                    "score": score,
                    "bank": bank[score]["spearman"],
                    "bank_within_sequences": bank[score]["within_sequences"],
                    "seeds": len(at),
                    "miou_at_8": statistics.mean(at),
                    "area": statistics.mean(study["areas"][acquisition].values()),
                }
            )
    agreements = [
        {"bank": ours, "study": theirs, "methods": len(rows), **agreement([(row[ours], row[theirs]) for row in rows])}
        for ours in ("bank", "bank_within_sequences")
        for theirs in ("miou_at_8", "area")
    ]
    table = [
        {
            "acquisition": row["acquisition"],
            "score of a set": row["score"],
            "bank": f"{row['bank']:+.2f}",
            "within sequences": f"{row['bank_within_sequences']:+.2f}",
            "seeds": row["seeds"],
            "mIoU at 8 labels": f"{100 * row['miou_at_8']:.1f}",
            "area": f"{row['area']:.1f}",
        }
        for row in sorted(rows, key=lambda row: -row["area"])
    ]
    results.save("gain_agreement", {"agreements": agreements, "rows": rows}, table)
    for one in agreements:
        print(one)


def agreement(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Spearman's rank correlation and its two-sided p."""
    ours, theirs = np.array(pairs).T
    tested = permutation_test(
        (ours,),
        lambda one: spearmanr(one, theirs).statistic,
        permutation_type="pairings",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return {"spearman": float(tested.statistic), "p": float(tested.pvalue)}


if __name__ == "__main__":
    main()
