import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.errors import UserError
from pipeline.images.classes import CLASS_SETS
from pipeline.networks import saved
from pipeline.networks.calibration import Calibration, of_temperature
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network, Parts
from pipeline.params import Compute, Model, Training
from pipeline.training import augmentation, fingerprints, loop, losses
from pipeline.training.batches import Batch
from pipeline.training.likelihood import likelihood_loss, likelihood_plan, with_auxiliary_head
from pipeline.training.loop import Loss, LossFunction, Plan, State, rate
from pipeline.training.optimiser import AdamW
from tests.conftest import ROOT

STEPS = 24


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one_convolution(dropout: float = 0.0) -> Network:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Conv2d(4, 3, 1))
    for number, parameter in enumerate(body.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return Network(body, 1, Parts(("3",), encoder="0", middle="2"))


def draw(step: int) -> Batch:
    """The brightest channel is the class: learnt by one convolution."""
    images = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
    return Batch.of_one_group(images, images.argmax(1).to(torch.uint8))


def batches(first: int) -> Iterator[Batch]:
    return (draw(step) for step in range(first, 10_000))


def plan(**changes: Any) -> Plan:
    return Plan(
        name="toy",
        steps=STEPS,
        lr=0.05,
        warmup=0.1,
        power=0.9,
        weight_decay=0.01,
        seed=5,
        frozen=False,
        checkpoint=Path("checkpoints/toy.pt"),
        checkpoint_seconds=1e9,
        fingerprint="one",
    )._replace(**changes)


Validate = Callable[[Network], float]


def fit(network: Network, loss: LossFunction, of: Plan, validate: Validate | None = None) -> list[dict[str, float]]:
    return loop.fit(Devices(), network, batches, loss, of, validate)


SETTINGS = Training(steps=STEPS, batch=4, lr=0.05)
LIKELIHOOD = likelihood_loss(torch.ones(3), SETTINGS)


def with_memory(network: Callable[[Tensor], Tensor], batch: Batch, rng: torch.Generator, state: State) -> Loss:
    """Carries a running loss from step to step, and uses the step's own generator."""
    noise = torch.randn((), generator=rng)
    now = losses.cross_entropy(network(batch.images), batch.masks, torch.ones(3))
    before = state.get("running", torch.zeros(()))
    value = now * (1 + 0.1 * noise) * (1 + before)
    return Loss(value, {"running": before}, {"running": (0.9 * before + 0.1 * now).detach()})


def test_rate_rises_and_decays() -> None:
    rates = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert [rate(step, 10, 0.2, 1.0) for step in range(10)] == rates


def test_rate_of_the_ends() -> None:
    assert rate(0, 1, 0.0, 0.9) == 1.0
    assert [rate(step, 4, 1.0, 0.9) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [rate(step, 5, 0.0, 0.0) for step in range(5)] == [1.0] * 5
    assert rate(75, 100, 0.5, 2.0) == pytest.approx(0.25)
    assert all(0 < rate(step, 37, 0.05, 0.9) <= 1 for step in range(37))


def test_fit_learns_what_one_convolution_can() -> None:
    network = one_convolution()
    log = fit(network, LIKELIHOOD, plan(steps=150))
    batch = draw(20_000)
    right = (network.eval()(batch.images).argmax(1) == batch.masks).float().mean()
    assert right > 0.9
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert [row["step"] for row in log] == list(range(10, 151, 10))


def test_fit_is_plain_adamw() -> None:
    network, mine = one_convolution(), one_convolution()
    log = fit(network, LIKELIHOOD, plan())
    mine.train()
    optimizer = torch.optim.AdamW(mine.parameters(), weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * rate(step, STEPS, 0.1, 0.9)
        batch = draw(step)
        loss = F.cross_entropy(mine(batch.images), batch.masks.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # A bias before a batch norm changes nothing: its gradient is rounding alone, which Adam makes a step of.
    for name, value in network.state_dict().items():
        if name not in ("body.0.bias", "body.1.running_mean"):
            torch.testing.assert_close(value, mine.state_dict()[name])
    images = draw(STEPS).images
    torch.testing.assert_close(network.train()(images), mine.train()(images), rtol=1e-4, atol=1e-4)
    assert log[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert log[-1]["lr"] == pytest.approx(0.05 * rate(STEPS - 1, STEPS, 0.1, 0.9))


class Killed(BaseException):
    """Stands for SIGKILL."""


def one_weight(network: Network) -> float:
    """Stands for a measure that is best after a few steps; it leaves the network in evaluation mode."""
    return -float(network.eval().body[0].weight.detach()[0, 0, 0, 0])


VALIDATED = {
    "no validation": (None, {}),
    "the best of all": (one_weight, {"validate_every": 5}),
    "stops early": (one_weight, {"validate_every": 3, "patience": 3}),
}


@pytest.mark.parametrize("killed_at", [1, 13])
@pytest.mark.parametrize("validated", VALIDATED)
def test_killed_and_resumed_ends_bit_for_bit_where_an_undisturbed_run_ends(validated: str, killed_at: int) -> None:
    validate, changes = VALIDATED[validated]
    undisturbed = one_convolution(dropout=0.3)
    log = fit(undisturbed, with_memory, plan(checkpoint=Path("other.pt"), **changes), validate)
    steps = int(log[-1]["step"])
    assert (steps < STEPS) == (validated == "stops early")
    calls = 0

    def dies(*arguments: Any) -> Loss:
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise Killed
        return with_memory(*arguments)

    often = plan(checkpoint_seconds=0.0, **changes)
    with pytest.raises(Killed):
        fit(one_convolution(dropout=0.3), dies, often, validate)
    calls = -1000
    torch.manual_seed(99)  # the global generator is another one after a restart
    resumed = one_convolution(dropout=0.3)
    assert fit(resumed, dies, often, validate) == log
    assert calls == -1000 + steps - killed_at
    assert fit(resumed, dies, often, validate) == log  # what is over is not gone on with
    assert calls == -1000 + steps - killed_at
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_best_weights_that_validation_saw_are_kept() -> None:
    seen: list[float] = []
    modes: list[bool] = []
    weights: list[dict[str, Tensor]] = []

    def validate(network: Network) -> float:
        modes.append(network.training)
        weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        seen.append(one_weight(network))
        return seen[-1]

    network, without = one_convolution(), one_convolution()
    log = fit(network, LIKELIHOOD, plan(validate_every=4), validate)
    assert [row["step"] for row in log] == [0, 4, 8, 10, 12, 16, 20, 24]
    assert [row["validation"] for row in log if "validation" in row] == seen
    assert modes == [True] * 7
    place = max(range(len(seen)), key=seen.__getitem__)
    assert 0 < place < len(seen) - 1
    assert all(torch.equal(weights[place][name], value) for name, value in network.state_dict().items())
    plain = fit(without, LIKELIHOOD, plan(checkpoint=Path("without.pt")))  # validation does not change the training
    assert [row for row in log if row["step"] in (10, 24)] == [plain[0], plain[2] | {"validation": seen[-1]}]
    assert all(torch.equal(weights[-1][name], value) for name, value in without.state_dict().items())


@pytest.mark.parametrize(("values", "kept"), [((5.0, 4.0, 3.0), 0), ((5.0, 5.0, 5.0), 0), ((1.0, 2.0, 2.0), 1)])
def test_a_training_ends_no_lower_than_its_start_and_ties_go_to_the_earlier(
    values: tuple[float, ...], kept: int
) -> None:
    given, weights = iter(values), []

    def validate(network: Network) -> float:
        weights.append([parameter.detach().clone() for parameter in network.parameters()])
        return next(given)

    network = one_convolution()
    fit(network, LIKELIHOOD, plan(validate_every=12), validate)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), weights[kept], strict=True))


@pytest.mark.parametrize(("patience", "last"), [(0, 24), (1, 6), (2, 15), (9, 24)])
def test_patience_ends_a_training_that_no_longer_improves(patience: int, last: int) -> None:
    values = iter([0.0, 1.0, 0.5, 2.0, 1.9, 2.0, 1.0, 1.0, 3.0])
    log = fit(one_convolution(), LIKELIHOOD, plan(validate_every=3, patience=patience), lambda network: next(values))
    assert log[-1]["step"] == last
    assert "validation" in log[-1]


def test_validation_that_is_not_finite_is_a_sentence() -> None:
    with pytest.raises(UserError, match="toy: validation is nan at step 0"):
        fit(one_convolution(), LIKELIHOOD, plan(), lambda network: float("nan"))


def test_gradients_are_clipped_to_the_norm() -> None:
    def norms(clip: float) -> list[float]:
        found: list[float] = []

        network = one_convolution()
        before = AdamW.step

        def step(optimizer: AdamW) -> None:
            gradients = [w.grad for w in network.parameters() if w.grad is not None]
            found.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            before(optimizer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdamW, "step", step)
            fit(network, LIKELIHOOD, plan(clip=clip, checkpoint=Path(f"{clip}.pt")))
        return found

    free = norms(0.0)
    assert max(free) > 0.4
    assert max(norms(0.1)) <= 0.1 * 1.001
    assert norms(1e6) == free


def test_parts_have_their_own_rates_and_decay() -> None:
    def moved(**changes: Any) -> dict[str, float]:
        network, start = one_convolution(), one_convolution()
        name = "-".join(map(str, changes.values()))
        fit(network, LIKELIHOOD, plan(steps=1, warmup=0.0, weight_decay=0.0, checkpoint=Path(f"{name}.pt"), **changes))
        pairs = zip(network.named_parameters(), start.parameters(), strict=True)
        return {name: float((a - b).detach().abs().median()) for (name, a), b in pairs}

    # AdamW's first step moves every weight by its rate
    plain, scaled = moved(), moved(lr_encoder=0.1, lr_head=2.0)
    factors = {name: scaled[name] / plain[name] for name in plain if plain[name] > 0.01}
    assert factors["body.0.weight"] == pytest.approx(0.1, rel=1e-3)
    assert factors["body.1.weight"] == pytest.approx(1, rel=1e-3)
    assert factors["body.3.weight"] == pytest.approx(2, rel=1e-3)
    assert factors["body.3.bias"] == pytest.approx(2, rel=1e-3)


def test_norms_and_biases_decay_only_if_they_shall() -> None:
    def nothing(network: Any, batch: Batch, rng: torch.Generator, state: State) -> Loss:
        return Loss(0 * network(batch.images).sum(), {}, state)

    for decay_norms in (True, False):
        network, start = one_convolution(), one_convolution()
        of = plan(weight_decay=1.0, decay_norms=decay_norms, checkpoint=Path(f"{decay_norms}.pt"))
        fit(network, nothing, of)
        for (name, weight), before in zip(network.named_parameters(), start.parameters(), strict=True):
            assert torch.equal(weight, before) == (weight.ndim == 1 and not decay_norms), name


def test_likelihood_mines_mixes_and_bends_the_loss_as_it_is_told() -> None:
    batch, ones, network = draw(0), torch.ones(3), one_convolution().eval()
    batch.masks[0, :3] = 255

    def value(step: int = 0, **changes: Any) -> float:
        loss = likelihood_loss(ones, SETTINGS.model_copy(update=changes))
        rng = torch.Generator().manual_seed(8)
        return float(loss(network, batch, rng, {"step": torch.tensor(step)}).value.detach())

    def expected(images: Tensor, masks: Tensor, **changes: Any) -> float:
        return float(losses.cross_entropy(network(images), masks, ones, **changes).detach())

    plain = batch.images, batch.masks
    assert value() == expected(*plain)
    assert value(poly1=2.0) == expected(*plain, poly1=2.0) > value()
    ramp = {"hard_pixels": 0.25, "hard_pixels_ramp": 0.5}
    assert value(hard_pixels=0.25) == expected(*plain, kept=0.25) > value()
    for step, kept in ((0, 1.0), (STEPS // 4, 0.625), (STEPS // 2, 0.25), (STEPS, 0.25)):
        assert value(step, **ramp) == pytest.approx(expected(*plain, kept=kept), rel=1e-6)
    mixed = augmentation.mixup(*batch, torch.Generator().manual_seed(8))
    shared = sum(float(share) * expected(mixed.images, masks) for share, masks, _ in mixed.targets)
    assert value(mix="mixup") == pytest.approx(shared, rel=1e-5)
    mixed = augmentation.classmix(*batch, torch.Generator().manual_seed(8))
    assert value(mix="classmix") == expected(mixed.images, mixed.targets[0][1]) != value()


def test_hard_pixels_ramp_counts_the_steps_of_a_resumed_training() -> None:
    loss = likelihood_loss(torch.ones(3), SETTINGS.model_copy(update={"hard_pixels": 0.2, "hard_pixels_ramp": 1.0}))
    log = fit(one_convolution(), loss, plan(checkpoint_seconds=0.0, checkpoint=Path("whole.pt")))
    calls = 0

    def dies(*arguments: Any) -> Loss:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise Killed
        return loss(*arguments)

    with pytest.raises(Killed):
        fit(one_convolution(), dies, plan(checkpoint_seconds=0.0))
    assert fit(one_convolution(), loss, plan(checkpoint_seconds=0.0)) == log


def test_auxiliary_head_learns_teaches_and_goes() -> None:
    settings = SETTINGS.model_copy(update={"auxiliary": 0.5})
    loss, network = likelihood_loss(torch.ones(3), settings), one_convolution()
    with with_auxiliary_head(network, settings, seed=1):
        batch = draw(0)
        both = loss(network, batch, torch.Generator(), {})
        main, second = (losses.cross_entropy(z, batch.masks, torch.ones(3)) for z in network(batch.images, True))
        torch.testing.assert_close(both.value, main + 0.5 * second)
        log = fit(network, loss, plan(steps=60), one_weight)
    assert log[-1]["auxiliary"] < 0.8 * log[1]["auxiliary"]
    assert network.state_dict().keys() == one_convolution().state_dict().keys()
    plain = one_convolution()
    with with_auxiliary_head(plain, SETTINGS, seed=1):
        assert plain.auxiliary is None


def test_plan_has_what_the_settings_say() -> None:
    changes = {"lr_encoder": 0.1, "lr_head": 10.0, "decay_norms": False, "clip": 5.0}
    made = likelihood_plan(SETTINGS.model_copy(update=changes), "toy", 5, Compute(), "one")
    assert {name: getattr(made, name) for name in changes} == changes
    assert made._asdict() == made._asdict() | SETTINGS.model_copy(update=changes).model_dump(include=set(made._fields))


def test_dropout_drops_and_follows_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = fit(one_convolution(dropout=0.5), LIKELIHOOD, plan(checkpoint=Path("1.pt")))
    network = one_convolution(dropout=0.5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert fit(network, LIKELIHOOD, plan(checkpoint=Path("2.pt"))) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fit(one_convolution(dropout=0.5), LIKELIHOOD, plan(checkpoint=Path("3.pt"), seed=6)) != first
    assert fit(one_convolution(dropout=0.0), LIKELIHOOD, plan(checkpoint=Path("4.pt"))) != first


def test_finished_training_is_not_done_again() -> None:
    network = one_convolution()
    log = fit(network, LIKELIHOOD, plan())

    def never(*arguments: Any) -> Loss:
        raise AssertionError("trained again")

    again = one_convolution()
    assert fit(again, never, plan()) == log
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


def test_checkpoint_of_other_settings_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    fit(one_convolution(), LIKELIHOOD, plan())
    network, fresh = one_convolution(), one_convolution()
    log = fit(network, LIKELIHOOD, plan(fingerprint="two", lr=0.01))
    assert "was made with other settings, data, code or versions; starting anew" in capsys.readouterr().out
    assert log == fit(fresh, LIKELIHOOD, plan(fingerprint="two", lr=0.01, checkpoint=Path("fresh.pt")))


def test_frozen_network_keeps_its_statistics_and_drops_nothing() -> None:
    network, whole = one_convolution(dropout=0.5), one_convolution(dropout=0.0)
    before = {name: value.clone() for name, value in network.named_buffers()}
    log = fit(network, LIKELIHOOD, plan(frozen=True))
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    assert log == fit(whole, LIKELIHOOD, plan(frozen=True, checkpoint=Path("whole.pt")))
    assert log[-1]["loss"] < log[0]["loss"]


def test_no_steps_change_nothing() -> None:
    network, same = one_convolution(), one_convolution()
    assert fit(network, LIKELIHOOD, plan(steps=0)) == []
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_is_a_sentence(value: float) -> None:
    def breaks(*arguments: Any) -> Loss:
        result = LIKELIHOOD(*arguments)
        return result._replace(value=result.value * value)

    with pytest.raises(UserError, match=r"toy: loss is (nan|inf) at step 10: lower its lr \(0\.05\)"):
        fit(one_convolution(), breaks, plan())


def test_term_that_is_not_finite_is_named() -> None:
    def breaks(*arguments: Any) -> Loss:
        return LIKELIHOOD(*arguments)._replace(terms={"kl": torch.tensor(float("nan"))})

    with pytest.raises(UserError, match="toy: kl is nan at step 10"):
        fit(one_convolution(), breaks, plan())


def test_weights_that_end_not_finite_are_a_sentence() -> None:
    def breaks(*arguments: Any) -> Loss:
        result = LIKELIHOOD(*arguments)
        return result._replace(value=result.value + (result.value - result.value).sqrt())  # the gradient is NaN

    with pytest.raises(UserError, match=r"toy: the weights body\.0\.weight are not finite: lower its lr"):
        fit(one_convolution(), breaks, plan(steps=1))


def test_fingerprint_is_of_what_is_given_and_of_how_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()

    def made(number: int = 1, **how: Any) -> str:
        return loop.fingerprint(devices, Compute(accelerator="cpu", **how), number)

    first = made()
    # where it runs, and how it is read and kept, changes nothing
    assert made(workers=7, checkpoint_seconds=1.0, batch=3) == first
    assert made(2) != first
    assert made(precision="bf16-mixed") != first
    monkeypatch.setattr(fingerprints, "version", lambda name: "0.0")
    assert made() != first


CAMVID = CLASS_SETS["camvid11"]
SMALL = Model(name="small", size=(16, 16), width=4)


@pytest.mark.parametrize("calibration", [of_temperature(1.5), Calibration((0.5,) * 11, (0.0, 1.0) + (-0.25,) * 9)])
def test_a_saved_network_is_opened_again(calibration: Calibration) -> None:
    network = saved.new_network(SMALL, CAMVID, torch.Generator().manual_seed(3))
    artifacts.save_model("r01", network.state_dict(), saved.describe(SMALL, CAMVID, calibration))
    opened, found = saved.open_network("r01", SMALL, CAMVID)
    assert found == calibration
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), network.parameters(), strict=True))


def test_a_network_of_an_earlier_version_keeps_its_temperature() -> None:
    network = saved.new_network(SMALL, CAMVID, torch.Generator().manual_seed(3))
    about = saved.describe(SMALL, CAMVID, of_temperature(1.0))
    del about["calibration"]
    artifacts.save_model("r01", network.state_dict(), about | {"temperature": 2.5})
    assert saved.open_network("r01", SMALL, CAMVID)[1] == of_temperature(2.5)


@pytest.mark.parametrize(
    ("model", "classes", "says"),
    [
        (SMALL.model_copy(update={"width": 8}), CAMVID, "width 4, but params.yaml says 8"),
        (SMALL.model_copy(update={"name": "unet"}), CAMVID, "name 'small', but params.yaml says 'unet'"),
        (SMALL, CLASS_SETS["cityscapes19"], "classes .*'Sky'.* says .*'road'"),
    ],
)
def test_a_network_of_other_settings_is_refused(model: Model, classes: Any, says: str) -> None:
    network = saved.new_network(SMALL, CAMVID, torch.Generator().manual_seed(3))
    artifacts.save_model("r01", network.state_dict(), saved.describe(SMALL, CAMVID, of_temperature(1.0)))
    with pytest.raises(UserError, match=rf"data/models/r01 was made with {says}"):
        saved.open_network("r01", model, classes)


def with_everything(devices: Devices, network: Network, share: Callable[[int], Iterator[Batch]]) -> float:
    """A training with a second head, clipping and validation that stops it early; the step at which it did."""
    settings = SETTINGS.model_copy(update={"auxiliary": 0.5, "poly1": 1.0})
    of = plan(frozen=True, clip=0.1, lr_head=2.0, validate_every=2, patience=3, checkpoint=Path("everything.pt"))
    loss = likelihood_loss(torch.ones(3), settings)
    with with_auxiliary_head(network, settings, seed=1):
        return loop.fit(devices, network, share, loss, of, lambda n: -abs(0.3 + one_weight(n)))[-1]["step"]


def sparse(step: int) -> Batch:
    """Two images of the target, one of them with one labelled pixel and one with half, and two of the source."""
    batch = draw(step)
    batch.masks[0, :3] = batch.masks[1, 1:] = batch.masks[1, :, 1:] = 255
    return batch._replace(groups=torch.tensor([0, 0, 1, 1]))


def of_sparse(devices: Devices, network: Network, share: Callable[[int], Iterator[Batch]]) -> None:
    """A training by domains on sparse labels."""
    loss = likelihood_loss(torch.ones(3), SETTINGS, (0.7, 0.3), devices)
    loop.fit(devices, network, share, loss, plan(frozen=True, checkpoint=Path("sparse.pt")))


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from pipeline.networks.devices import Devices
from pipeline.params import Compute
from tests.test_training import LIKELIHOOD, draw, of_sparse, one_convolution, plan, sparse, with_everything
from pipeline.training import loop

devices = Devices.start(Compute(accelerator="cpu", processes=2))
rank = devices.rank
rows = torch.arange(10.0).view(5, 2)
assert torch.equal(devices.gather(rows[rank::2], 5), rows), "gather"
assert devices.total(torch.tensor([1, rank])).tolist() == [2, 1], "total"

def share(first, draw=draw):
    for step in range(first, 24):
        batch = draw(step)
        yield batch.part(slice(rank, None, 2))

network = one_convolution()
loop.fit(devices, network, share, LIKELIHOOD, plan(frozen=True))
if rank == 0:
    torch.save(network.state_dict(), "two.pt")

network = one_convolution()
with_everything(devices, network, share)
same = devices.everyone(network.body[0].weight.detach())
assert torch.equal(same[0], same[1]), "best weights"
if rank == 0:
    torch.save(network.state_dict(), "everything of two.pt")

network = one_convolution()
of_sparse(devices, network, lambda first: share(first, sparse))
if rank == 0:
    torch.save(network.state_dict(), "sparse of two.pt")
"""


def test_two_processes_train_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("two.py").write_text(TWO_PROCESSES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "two.py"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    alone = one_convolution()
    fit(alone, LIKELIHOOD, plan(frozen=True, checkpoint=Path("alone.pt")))
    everything = one_convolution()
    Path("everything.pt").unlink()
    assert with_everything(Devices(), everything, batches) == 10
    few = one_convolution()
    Path("sparse.pt").unlink()
    of_sparse(Devices(), few, lambda first: (sparse(step) for step in range(first, STEPS)))
    for network, file in ((alone, "two.pt"), (everything, "everything of two.pt"), (few, "sparse of two.pt")):
        together = torch.load(file, weights_only=True)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)


FAILS = """
import sys
from pipeline.networks.devices import Devices
from pipeline.params import Compute
devices = Devices.start(Compute(accelerator="cpu", processes=2))
if devices.rank:
    sys.exit(3)
while True:
    pass
"""


def test_where_one_process_fails_the_rest_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fails.py").write_text(FAILS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "fails.py"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "process 1 of 2 has ended with status 3, so all do" in done.stderr
