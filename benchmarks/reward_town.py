"""What the reward stage adds on the demo town, round by round: the same round with and without it, from the same start.

    make demo
    python -m benchmarks.reward_town

Every round of the finished demo is tuned once more in a copy, from the model that the demo had before it and on the
same labels, with `tune.reward.steps` at 0, and measured; the demo's own metrics are the other side.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks import results
from pipeline import params_file, paths
from pipeline.stages import evaluate, tune
from pipeline.stages.running import sections

COPIED = ("data", "params.yaml")


def main() -> None:
    """Measure and write docs/results/reward_town.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    demo = Path.cwd()
    settings = params_file.load()
    unrewarded = settings.tune.reward.model_copy(update={"steps": 0})
    without = settings.model_copy(update={"tune": settings.tune.model_copy(update={"reward": unrewarded})})
    rows = []
    with tempfile.TemporaryDirectory(prefix="regain-town-") as folder:
        for name in COPIED:
            (shutil.copytree if (demo / name).is_dir() else shutil.copy2)(demo / name, Path(folder) / name)
        os.chdir(folder)
        for name, line in settings.budget.items():
            after = shutil.copytree(demo / paths.model(name), Path(folder) / "kept")
            tune.run(name, line, **sections(tune.run, without))
            evaluate.run(name, **sections(evaluate.run, without))
            likelihood, reward = (json.loads((root / paths.metrics(name)).read_text()) for root in (Path(folder), demo))
            rows.append(
                {
                    "round": name,
                    **{f"{key} by likelihood": likelihood[key] for key in ("miou_argmax", "miou_expected_iou")},
                    **{f"{key} with the reward stage": reward[key] for key in ("miou_argmax", "miou_expected_iou")},
                }
            )
            shutil.rmtree(paths.model(name))
            after.rename(paths.model(name))  # the next round starts from the demo's model
        os.chdir(demo)
    table = [{k: v if k == "round" else f"{100 * v:.1f}" for k, v in row.items()} for row in rows]
    results.save("reward_town", {"rows": rows}, table)
    for row in table:
        print(row)


if __name__ == "__main__":
    main()
