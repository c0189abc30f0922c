"""What scoring a pool costs beside the bare forward pass of the same network, and whether its memory grows.

    python -m benchmarks.scoring [--images 48] [--size 256 512] [--model fpn] [--baal DIR]

Both run over as many pixels of image files, in batches of 8, alternating, five times each; the ratio is that of
the medians. Scoring is all that the stage does in its pass: reading, decoding and resizing the files, softmax, the
acquisition's statistics, what predicts the minutes, and the features for selection. The peak memory is that of fresh
processes which score the pool once and four times over.

With --baal, BALD by the library Baal runs over the same files with the same network, too: 20 passes with dropout, as
its documentation has it. Its numpy and ours differ, so it is installed beside: `uv pip install --target DIR --no-deps
baal structlog==22.3.0 torchmetrics lightning-utilities scikit-learn joblib threadpoolctl narwhals h5py`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import results
from pipeline import datasets
from pipeline.gain.pool import score_pool
from pipeline.gain.scorer import start_scorer
from pipeline.images import reading, resizing
from pipeline.images.classes import CLASS_SETS
from pipeline.images.items import Item, id_table_of_labels
from pipeline.networks import saved
from pipeline.networks.calibration import NONE
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Compute, Model, Score
from pipeline.town.draw import draw_town

NAME = "scoring"
REPEATS = 5
BAAL_PASSES = 20
BAAL_SHARE = 4
"""Baal scores one image in so many, once; the time counts so many times."""


def main() -> None:
    """Measure and write docs/results/scoring.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), help="height and width")
    parser.add_argument("--model", default="fpn")
    parser.add_argument("--baal", type=Path, help="where Baal is installed")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # a fresh process that scores and prints its peak
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = (given.size[0], given.size[1])
    compute = Compute(accelerator="cpu", batch=8, workers=1)
    devices = Devices.start(compute)
    model = Model(name=given.model, size=size)
    network = saved.new_network(model, CLASS_SETS["cityscapes19"], torch.Generator().manual_seed(0)).eval()

    scorer = start_scorer("r01", "r00", network, NONE, Score(), seed=0, rounds=0)

    def score(items: list[Item]) -> None:
        found = score_pool(devices, scorer, items, len(items), model, compute, features_seed=0)
        assert len(found.gains) == len(found.features.keys) == len(items)

    if given.peak:
        score(pool(given.peak) * given.times)
        print(results.peak_mib())
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_town(Path(folder), source=1, pool=given.images, test=1, size=size, seed=0)
        items = pool(Path(folder))
        batch = torch.randint(0, 256, (compute.batch, 3, *size), dtype=torch.uint8)

        def forward() -> None:
            with torch.inference_mode():
                for _ in range(len(items) // compute.batch):
                    network(batch)

        forward()
        seconds: dict[str, list[float]] = {"forward": [], "score": []}
        for _ in range(REPEATS):
            seconds["forward"].append(results.timed(forward))
            seconds["score"].append(results.timed(lambda: score(items)))
        if given.baal:
            some = items[: len(items) // BAAL_SHARE]
            seconds["baal"] = [results.timed(lambda: bald_by_baal(given.baal, network, some, size)) * BAAL_SHARE]
        peaks = [peak(Path(folder), times, given.model, size) for times in (1, 4)]

    forward_rate, score_rate = (len(items) / statistics.median(seconds[name]) for name in ("forward", "score"))
    content = {
        "model": given.model,
        "size": size,
        "images": len(items),
        "ratio_to_forward": score_rate / forward_rate,
        "images_per_second": score_rate,
        "forward_images_per_second": forward_rate,
        "peak_mib": peaks[0],
        "peak_mib_of_four_times_the_pool": peaks[1],
        "seconds": seconds,
    }
    table = [
        {
            "network": f"{given.model} (MobileNetV2), {size[0]}x{size[1]}, 19 classes",
            "score, images/s": f"{score_rate:.2f}",
            "bare forward, images/s": f"{forward_rate:.2f}",
            "ratio": f"{score_rate / forward_rate:.2f}",
            "peak MiB": f"{peaks[0]:.0f}",
            "peak MiB, 4x the pool": f"{peaks[1]:.0f}",
        }
    ]
    if given.baal:
        content["ratio_to_baal"] = score_rate / (len(items) / seconds["baal"][0])
        table[0]["times as fast as BALD by Baal"] = f"{content['ratio_to_baal']:.1f}"
    results.save(NAME, content, table)
    print(table[0])


def pool(root: Path) -> list[Item]:
    """The town's pool as items."""
    table = id_table_of_labels(19)
    return [Item(s.key, s.image, None, table) for s in datasets.find("cityscapes", root / "cityscapes", "train")]


def bald_by_baal(installed: Path, network: Network, items: list[Item], size: tuple[int, int]) -> None:
    """The scores of Baal's BALD: every image as often as there are passes in a batch of its own."""
    sys.path.append(str(installed))
    from baal.active.heuristics import BALD
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
            image = resizing.resize(reading.read_image(items[place].image), size)
            return torch.from_numpy(image).movedim(2, 0), 0

    wrapper = ModelWrapper(patch_module(network, inplace=False), TrainingArgs(batch_size=1, workers=1))
    with torch.inference_mode():
        predictions = wrapper.predict_on_dataset_generator(Files(), iterations=BAAL_PASSES)
        scores = BALD(reduction="mean").get_uncertainties_generator(predictions)
    assert len(scores) == len(items)
    assert scores.min() > 0


def peak(folder: Path, times: int, model: str, size: tuple[int, int]) -> float:
    """Peak resident MiB of a process that scores the pool so many times over."""
    words = ["--peak", str(folder), "--times", str(times), "--model", model, "--size", *map(str, size)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scoring", *words], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
