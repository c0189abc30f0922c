"""The reward stage's loss and what is around it: estimators, anchors, gauges, held-out images, repeated batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.errors import UserError
from pipeline.estimators import ESTIMATORS
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import Item, id_table_of_labels
from pipeline.images.masks import save_mask
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Compute, Model, Reward, Tune
from pipeline.rewards import REWARDS
from pipeline.stages import tune
from pipeline.training import batches, loop, losses, reward_tuning
from pipeline.training.batches import Batch
from pipeline.training.likelihood import likelihood_loss
from tests import fakes
from tests.test_training import SETTINGS, draw, one_convolution, plan

CLASSES = ClassSet("rgb", ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
EVEN = torch.ones(3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def devices() -> Devices:
    return Devices()


def reward(**changes: Any) -> Reward:
    return Reward.model_validate({"steps": 20, "lr": 0.02, "tolerance": 0, "samples": 4} | changes)


def stream(first: int) -> Iterator[Batch]:
    return (draw(step) for step in range(first, 10_000))


def tuned(settings: Reward, devices: Devices, network: Network, **changes: Any) -> list[dict[str, float]]:
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    anchor = one_convolution().eval() if settings.kl else None
    loss = reward_tuning.loss_function(settings, function, EVEN, network, anchor, devices)
    of = plan(steps=settings.steps, lr=settings.lr, frozen=True, **changes)
    log = loop.fit(devices, network, batches.repeated(stream, settings.epochs), loss, of)
    of.checkpoint.unlink()
    return log


# -- rewards by their settings -----------------------------------------------------------------------------------------


def test_a_missed_person_costs_ten_false_ones() -> None:
    costs = {"red": {"any": 10.0, "blue": 3.0}}
    function = reward_tuning.reward_function(reward(reward="expected_cost", costs=costs), EVEN, CLASSES)
    truth = torch.tensor([[[0, 0, 1, 2]]], dtype=torch.uint8)

    def cost(*labels: int) -> float:
        labelling = torch.tensor([[labels]], dtype=torch.uint8)
        return -4 * float(function.value(function.statistics(labelling, truth).sum(0)).total)

    assert cost(0, 0, 1, 2) == 0
    assert cost(1, 0, 1, 2) == 10  # missed
    assert cost(2, 0, 1, 2) == 3  # named beside `any`
    assert cost(0, 0, 0, 2) == 1  # false


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reward": "expected_cost", "costs": {"person": {"any": 1.0}}}, "unknown class in tune.reward.costs 'person'"),
        ({"reward": "expected_cost", "costs": {"red": {"car": 1.0}}}, "unknown class in tune.reward.costs 'car'"),
    ],
)
def test_unknown_classes_are_answered_with_the_known(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        reward_tuning.reward_function(reward(**changes), EVEN, CLASSES)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_tunes_a_network(estimator: str, devices: Devices) -> None:
    network = one_convolution()
    log = tuned(reward(estimator=estimator, steps=80, cross_entropy=0.0, kl=0.0), devices, network)
    assert log[-1]["reward"] > log[0]["reward"] + 0.05
    names = {"reward", "reward_std", "advantage_std", "cross_entropy", "entropy", "gradient_cosine"}
    assert names <= set(log[0])
    assert "kl" not in log[0]
    assert -1 <= log[0]["gradient_cosine"] <= 1


@pytest.mark.parametrize("unit", ["patch", "superpixel"])
@pytest.mark.parametrize("estimator", ["counterfactual", "reinforce"])
def test_segments_tune_a_network(unit: str, estimator: str, devices: Devices) -> None:
    settings = reward(estimator=estimator, unit=unit, patch=2, steps=80, cross_entropy=0.0, kl=0.0, samples=8)
    log = tuned(settings, devices, one_convolution())
    assert log[-1]["cross_entropy"] < log[0]["cross_entropy"]


def test_one_counterfactual_gradient_is_more_signal_than_a_reinforced_one(devices: Devices) -> None:
    cosines = {
        estimator: tuned(
            reward(estimator=estimator, credit="image", kl=0.0, cross_entropy=0.0), devices, one_convolution()
        )
        for estimator in ("counterfactual", "reinforce")
    }
    assert cosines["counterfactual"][0]["gradient_cosine"] > cosines["reinforce"][0]["gradient_cosine"]


def test_a_strong_kl_holds_the_model_where_it_was(devices: Devices) -> None:
    free, held = (tuned(reward(steps=60, kl=kl, cross_entropy=0.0), devices, one_convolution()) for kl in (1e-9, 100.0))
    assert held[-1]["kl"] < 0.1 * free[-1]["kl"]


def test_the_loss_is_the_estimators_plus_the_anchors(devices: Devices) -> None:
    def once(**changes: float) -> tuple[float, dict[str, float]]:
        settings, network = reward(**changes), one_convolution().eval()
        function = reward_tuning.reward_function(settings, EVEN, CLASSES)
        other = one_convolution().eval()
        with torch.no_grad():
            next(other.parameters()).mul_(3)
        loss = reward_tuning.loss_function(settings, function, EVEN, network, other, devices)
        result = loss(network, draw(0), torch.Generator().manual_seed(0), {})
        return float(result.value.detach()), {name: float(term.detach()) for name, term in result.terms.items()}

    bare, terms = once(cross_entropy=0.0, kl=0.0)
    assert once(cross_entropy=2.0, kl=0.0)[0] == pytest.approx(bare + 2 * terms["cross_entropy"], rel=1e-5)
    assert once(cross_entropy=0.0, kl=3.0)[0] == pytest.approx(bare + 3 * terms["kl"], rel=1e-5)
    assert terms["kl"] > 1e-3


def test_the_memory_is_the_decayed_sum_of_what_was_sampled(devices: Devices) -> None:
    settings, network = reward(memory=0.5, kl=0.0), one_convolution().eval()
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    loss = reward_tuning.loss_function(settings, function, EVEN, network, None, devices)
    state: dict[str, torch.Tensor] = {}
    pixels = draw(0).masks.numel()
    for expected in (pixels, 1.5 * pixels, 1.75 * pixels):
        state = loss(network, draw(0), torch.Generator().manual_seed(0), state).state
        assert float(state["memory"].sum()) == expected


def test_ppo_learns_several_times_from_one_sample_and_counts_it_once(devices: Devices) -> None:
    settings, network = reward(estimator="ppo", epochs=3, memory=1.0, kl=0.0), one_convolution().eval()
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    loss = reward_tuning.loss_function(settings, function, EVEN, network, None, devices)
    state: dict[str, torch.Tensor] = {}
    drawn, counted = [], []
    for step in range(6):
        state = loss(network, draw(step // 3), torch.Generator().manual_seed(step), state).state
        drawn.append(state["own_labellings"])
        counted.append(float(state["memory"].sum()))
    pixels = draw(0).masks.numel()
    assert counted == [pixels] * 3 + [2 * pixels] * 3
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[2], drawn[3])


@pytest.mark.parametrize("name", ["pooled_miou", "boundary_f1", "detection"])
def test_first_batches_without_a_label_are_no_fault(name: str, devices: Devices) -> None:
    def void(first: int) -> Iterator[Batch]:
        for step in range(first, 10_000):
            batch = draw(step)
            yield batch._replace(masks=torch.full_like(batch.masks, IGNORE)) if step < 12 else batch

    settings = reward(reward=name, estimator="reinforce", credit="image", steps=20)
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    network = one_convolution()
    loss = reward_tuning.loss_function(settings, function, EVEN, network, None, devices)
    log = loop.fit(devices, network, void, loss, plan(steps=20, frozen=True))
    assert [("reward" in row) for row in log] == [False, True]
    assert all(abs(value) < float("inf") for row in log for value in row.values())


def test_held_out_images_without_a_label_are_a_sentence(devices: Devices) -> None:
    fakes.mask(Path("m.png"), np.full(fakes.SIZE, IGNORE))
    fakes.image(Path("i.png"), np.random.default_rng(0))
    of = [Item("one", Path("i.png"), Path("m.png"), id_table_of_labels(3))]
    function = reward_tuning.reward_function(reward(), EVEN, CLASSES)
    compute, model = Compute(accelerator="cpu", workers=0), Model(name="small", size=(6, 5))
    validate = reward_tuning.held_out_reward(devices, function, of, model, compute)
    with pytest.raises(UserError, match=r"tune\.held_out: the labels of the 1 images .*'one'.* hold out more, or 0"):
        loop.fit(devices, one_convolution(), stream, likelihood_loss(EVEN, SETTINGS), plan(), validate)


def test_the_anchor_says_what_the_network_says_in_the_same_precision() -> None:
    halved = Devices(precision="bf16-mixed")
    settings, network = reward(kl=1.0), one_convolution().eval()
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    loss = reward_tuning.loss_function(settings, function, EVEN, network, one_convolution().eval(), halved)
    result = loss(halved.wrap(network), draw(0), torch.Generator().manual_seed(0), {})
    assert float(result.terms["kl"].detach()) == 0


def test_labels_without_a_class_and_classes_without_a_label_are_sentences() -> None:
    source = pd.DataFrame({"n_red": [5], "n_green": [7], "n_blue": [0]})
    masks = {"void": np.full((4, 4), IGNORE, np.uint8), "red": np.zeros((4, 4), np.uint8)}
    items = {name: Item(name, Path(), Path(f"{name}.png"), id_table_of_labels(3)) for name in masks}
    for name, mask in masks.items():
        save_mask(Path(f"{name}.png"), mask)

    def weights(*names: str, class_smooth: float = 0.05) -> torch.Tensor:
        likelihood = {"steps": 1, "batch": 1, "lr": 1.0, "class_smooth": class_smooth}
        of = Tune.model_validate({"likelihood": likelihood, "reward": {"steps": 1, "lr": 1.0}})
        return tune.weights_of_both(tune.with_a_class([items[name] for name in names]), source, CLASSES, of)

    assert torch.equal(weights("red", "void"), weights("red"))
    assert weights("red").isfinite().all()
    with pytest.raises(UserError, match=r"no pixel of the 1 label to learn from is of a class"):
        weights("void")
    with pytest.raises(UserError, match=r"tune\.likelihood\.class_smooth is 0, but no labelled pixel is of 'blue'"):
        weights("red", class_smooth=0.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_sample_is_of_the_process_that_drew_it(
    processes: int, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written by the first process: what it has drawn is for its own images alone."""
    settings = reward(estimator="ppo", epochs=3)
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)

    # This one stands for the others, too, whose share is as large.
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network, **_: network)
    network, of = one_convolution(), plan(steps=2, frozen=True, checkpoint_seconds=0.0)
    loss = reward_tuning.loss_function(settings, function, EVEN, network, None, devices)
    seen: list[set[str]] = []

    def dies(network: Any, batch: Batch, rng: torch.Generator, state: loop.State) -> loop.Loss:
        seen.append(set(state))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return loss(network, batch, rng, state)

    with pytest.raises(KeyboardInterrupt):
        loop.fit(devices, network, stream, dies, of)
    loop.fit(Devices(processes=processes), one_convolution(), stream, dies, of)
    assert {"step", "memory"} <= seen[2]
    assert ("own_labellings" in seen[1], "own_labellings" in seen[2]) == (True, processes == 1)


def test_what_an_estimator_refuses_is_a_sentence(devices: Devices) -> None:
    unchecked = reward().model_copy(update={"reward": "boundary_f1"})
    with pytest.raises(UserError, match=r"tune.reward: estimator counterfactual with reward boundary_f1: .* take rein"):
        tuned(unchecked, devices, one_convolution())


WAYS = [
    {},
    {"credit": "image"},
    {"unit": "patch"},
    {"unit": "superpixel", "credit": "image"},
    {"samples": 1},
    {"samples": 1, "baseline": "none", "credit": "image"},
    {"baseline": "two_sample"},
    {"baseline": "other_images"},
    {"baseline": "other_images", "credit": "image"},
    {"baseline": "rolling_mean", "samples": 1},
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_params_refuse_what_an_estimator_refuses_and_nothing_else(estimator: str) -> None:
    """Before anything is trained or bought: the estimator itself is asked after both."""
    for name in REWARDS:
        for how in WAYS:
            settings = reward().model_copy(update={"reward": name, "estimator": estimator, **how})
            early = settings.clash()
            try:
                reward_tuning.check(settings, CLASSES)
                late = None
            except UserError as error:
                late = str(error).split(f"with reward {name}: ")[1]
            assert (early is None) == (late is None), (name, how, early, late)
            assert early is None or early.startswith(str(late)), (name, how)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_can_be_tuned_for(name: str, devices: Devices) -> None:
    counted = reward_tuning.reward_function(
        reward(reward=name, estimator="ppo", credit="image"), EVEN, CLASSES
    ).of_counts
    credit = "image" if name in ("image_miou", "detection") else "local"
    settings = reward(
        reward=name, estimator="counterfactual" if counted is not None else "reinforce", credit=credit, steps=10
    )
    assert all(
        abs(value) < float("inf") for row in tuned(settings, devices, one_convolution()) for value in row.values()
    )


@pytest.mark.parametrize("images", [2, 3, 4])
def test_small_batches_have_no_gauge_rather_than_no_training(images: int, devices: Devices) -> None:
    settings, network = reward(estimator="reinforce", baseline="other_images", credit="image"), one_convolution().eval()
    function = reward_tuning.reward_function(settings, EVEN, CLASSES)
    loss = reward_tuning.loss_function(settings, function, EVEN, network, None, devices)
    batch, state = draw(0).part(slice(images)), dict[str, torch.Tensor]()
    for _ in range(loop.LOG_EVERY):
        result = loss(network, batch, torch.Generator().manual_seed(0), state)
        state = result.state
    assert ("gradient_cosine" in result.terms) == (images == 4)


# -- around it ---------------------------------------------------------------------------------------------------------


def test_batches_are_repeated_from_any_step_on() -> None:
    def numbers(first: int) -> Iterator[Batch]:
        return (
            Batch.of_one_group(torch.full((1, 3, 1, 1), n, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
            for n in range(first, 9)
        )

    def seen(times: int, first: int) -> list[int]:
        again = batches.repeated(numbers, times)(first)
        return [int(next(again).images[0, 0, 0, 0]) for _ in range(5)]

    assert seen(1, 2) == [2, 3, 4, 5, 6]
    assert seen(3, 0) == [0, 0, 0, 1, 1]
    assert seen(3, 4) == [1, 1, 2, 2, 2]


def items(count: int) -> list[Item]:
    return [Item(f"k{n}", Path(f"{n}.png"), Path(f"{n}m.png"), id_table_of_labels(3)) for n in range(count)]


def test_held_out_images_are_no_others_training_images() -> None:
    of = items(20)
    kept, held = tune._hold_out(of, 0.25)
    assert len(held) == 5
    assert {item.key for item in kept} | {item.key for item in held} == {item.key for item in of}
    assert len(kept) == 15
    more = {item.key for item in tune._hold_out(items(24), 0.25)[1]}
    assert len(more & {item.key for item in held}) >= 3  # most stay what they were as rounds add images
    assert tune._hold_out(of, 0.0) == (of, [])
    with pytest.raises(UserError, match=r"tune\.held_out 1 leaves none of 20"):
        tune._hold_out(of, 1.0)


@pytest.mark.parametrize("name", REWARDS)
def test_held_out_reward_is_the_reward_of_the_most_probable_labels(name: str, devices: Devices) -> None:
    of, truth = [], []
    for number in range(3):
        batch = draw(number)
        image, mask = batch.images[0], batch.masks[0].clone()
        mask[0] = IGNORE
        truth.append(mask)
        fakes.Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{number}.png")
        save_mask(Path(f"{number}m.png"), mask.numpy())
        of.append(Item(f"k{number}", Path(f"{number}.png"), Path(f"{number}m.png"), id_table_of_labels(3)))
    network = one_convolution()
    function = reward_tuning.reward_function(reward(reward=name, estimator="ppo", credit="image"), EVEN, CLASSES)
    compute = Compute(accelerator="cpu", batch=2, workers=0)
    found = reward_tuning.held_out_reward(devices, function, of, Model(name="small", size=(6, 5)), compute)(network)
    images = torch.stack([draw(number).images[0] for number in range(3)])
    labels = network.eval()(images).argmax(1).byte()
    assert found == pytest.approx(float(function.value(function.statistics(labels, torch.stack(truth)).sum(0)).total))


def test_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    logits[..., 1] = 0
    valid = torch.tensor([[[True, False]]])
    assert float(losses.entropy(logits, valid)) == pytest.approx(1.5 * 0.693147, abs=1e-5)
    assert float(losses.entropy(logits, ~valid)) == pytest.approx(1.098612, abs=1e-5)
    assert float(losses.entropy(logits, valid & ~valid)) == 0
