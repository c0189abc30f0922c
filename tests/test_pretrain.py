"""On what the source model is calibrated."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifacts, batches, datasets, inference, paths, pretrain, training
from pipeline.batches import Item
from pipeline.calibration import NONE
from pipeline.errors import UserError
from pipeline.labels import CLASS_SETS
from pipeline.models import Network
from pipeline.params import Compute
from tests import fakes, repo

CLASSES = CLASS_SETS["cityscapes19"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool without masks, and a source."""
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    for mask in artifacts.load_manifest("pool")["mask"]:
        Path(mask).unlink()
    fakes.write("gta5", Path("source"), count=20)
    samples = datasets.find("gta5", Path("source"), "train")
    frame = pd.DataFrame({"key": [s.key for s in samples], "image": [str(s.image) for s in samples]})
    frame["mask"] = [str(sample.mask) for sample in samples]
    frame = frame.assign(height=fakes.SIZE[0], width=fakes.SIZE[1], sha256="ab" * 32)
    artifacts.save_manifest("source", frame.assign(**{f"n_{name}": 100 for name in CLASSES.names}))


def untrained() -> Network:
    return training.new_network(repo.params().model, CLASSES, torch.Generator().manual_seed(3)).eval()


def pool() -> list[Item]:
    return batches.items(artifacts.load_manifest("pool"), batches.stored(19))


def mixed(network: Network, batch: int = 8) -> inference.Pixels:
    compute = Compute(accelerator="cpu", workers=0, batch=batch)
    return inference.mixed(training.start(compute), network, pool(), repo.params().model.size, compute, seed=5)


def image(item: Item) -> torch.Tensor:
    small = batches.transforms.resize(datasets.read_image(item.image), repo.params().model.size)
    return torch.from_numpy(small).permute(2, 0, 1).double()


def test_blends_are_held_against_what_is_claimed_of_their_larger_part() -> None:
    network, items = untrained(), pool()
    order = np.random.default_rng([5, *b"mixed"]).permutation(len(items))
    assert sorted(order) == list(range(8))
    logits, claims = [], []
    for place, own in enumerate(order):
        one, other = image(items[own]), image(items[order[place - 1]])
        blend = (0.65 * one + 0.35 * other).round()
        with torch.no_grad():
            said, own_claim, other_claim = (network(x.byte()[None])[0] for x in (blend, one, other))
        differ = own_claim.argmax(0) != other_claim.argmax(0)
        logits.append(said[:, differ].T)
        claims.append(own_claim.argmax(0)[differ])
    found = mixed(network)
    assert len(found.truth) > 100
    assert torch.equal(found.truth, torch.cat(claims))
    torch.testing.assert_close(found.logits, torch.cat(logits), rtol=1e-3, atol=2e-3)  # a blend may round the other way
    assert found.weights.unique().tolist() == [1]


def test_batches_change_nothing() -> None:
    one, three = mixed(untrained(), 1), mixed(untrained(), 3)
    assert torch.equal(one.truth, three.truth)
    torch.testing.assert_close(one.logits, three.logits, rtol=1e-4, atol=1e-5)


def test_one_claim_for_all_is_a_sentence() -> None:
    network = untrained()
    with torch.no_grad():
        network.last_layer().bias[4] = 1e3
    with pytest.raises(UserError, match=r"the model claims the same of '.*' and 7 more .* set calibration.start"):
        mixed(network)


def test_logits_that_are_not_finite_are_a_sentence() -> None:
    pixels = inference.Pixels(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(UserError, match=r"calibration.method vector: a calibration needs .*: train with a lower lr"):
        pixels.fit("vector")


@pytest.mark.parametrize("start", ["none", "source", "pseudo_target"])
def test_the_stage_calibrates_on_what_it_is_told(start: str) -> None:
    of = repo.params(calibration={"method": "vector", "start": start})
    pretrain.run(
        seed=5,
        prepare=of.prepare,
        model=of.model,
        pretrain=of.pretrain,
        calibration=of.calibration,
        compute=of.compute,
    )
    network, fitted = training.open_network(paths.SOURCE_ROUND, of.model, CLASSES)
    table = datasets.table("gta5", Path("source"), CLASSES)
    held_out = batches.items(artifacts.load_manifest("source"), table)[pretrain.HELD_OUT - 1 :: pretrain.HELD_OUT]
    assert len(held_out) == 1
    expected = {
        "none": lambda: NONE,
        "source": lambda: inference.labelled(
            training.start(of.compute), network, held_out, of.model.size, of.compute
        ).fit("vector"),
        "pseudo_target": lambda: mixed(network).fit("vector"),
    }
    assert fitted == expected[start]()


def test_source_without_an_image_to_spare_calibrates_nothing() -> None:
    artifacts.save_manifest("source", artifacts.load_manifest("source")[:4])
    of = repo.params(calibration={"start": "source"})
    pretrain.run(
        seed=5,
        prepare=of.prepare,
        model=of.model,
        pretrain=of.pretrain,
        calibration=of.calibration,
        compute=of.compute,
    )
    assert training.open_network(paths.SOURCE_ROUND, of.model, CLASSES)[1] == NONE
