import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import artifacts, losses, training
from pipeline.batches import Batch
from pipeline.errors import UserError
from pipeline.labels import CLASS_SETS
from pipeline.models import Network
from pipeline.params import Model, Training
from pipeline.training import Loss, LossFunction, Plan, State, rate
from tests.conftest import ROOT

STEPS = 24


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one_convolution(dropout: float = 0.0) -> Network:
    body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(dropout), nn.Conv2d(3, 3, 1))
    for number, parameter in enumerate(body.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return Network(body, multiple=1)


def draw(step: int) -> Batch:
    """The brightest channel is the class: learnt by one convolution."""
    images = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
    return Batch(images, images.argmax(1).to(torch.uint8))


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


def fit(network: Network, loss: LossFunction, of: Plan) -> list[dict[str, float]]:
    return training.fit(Fabric(accelerator="cpu", devices=1), network, batches, loss, of)


SETTINGS = Training(steps=STEPS, batch=4, lr=0.05)
LIKELIHOOD = training.likelihood(torch.ones(3), SETTINGS)


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
    for one, other in zip(network.state_dict().values(), mine.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert log[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert log[-1]["lr"] == pytest.approx(0.05 * rate(STEPS - 1, STEPS, 0.1, 0.9))


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("killed_at", [1, 13])
def test_killed_and_resumed_ends_bit_for_bit_where_an_undisturbed_run_ends(killed_at: int) -> None:
    undisturbed = one_convolution(dropout=0.3)
    log = fit(undisturbed, with_memory, plan(checkpoint=Path("other.pt")))
    calls = 0

    def dies(*arguments: Any) -> Loss:
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise Killed
        return with_memory(*arguments)

    often = plan(checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        fit(one_convolution(dropout=0.3), dies, often)
    calls = -1000
    torch.manual_seed(99)  # the global generator is another one after a restart
    resumed = one_convolution(dropout=0.3)
    assert fit(resumed, dies, often) == log
    assert calls == -1000 + STEPS - killed_at
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


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
    assert "belongs to other settings; starting anew" in capsys.readouterr().out
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


def test_fingerprint_follows_values_and_the_content_of_files() -> None:
    path = Path("file")
    path.write_text("a")
    first = training.fingerprint(1, path)
    assert training.fingerprint(1, path) == first
    assert training.fingerprint(2, path) != first
    path.write_text("b")
    assert training.fingerprint(1, path) != first


CAMVID = CLASS_SETS["camvid11"]
SMALL = Model(name="small", size=(16, 16), width=4)


def test_a_saved_network_is_opened_again() -> None:
    network = training.new_network(SMALL, CAMVID, torch.Generator().manual_seed(3))
    artifacts.save_model("r01", network.state_dict(), training.describe(SMALL, CAMVID, 1.5))
    opened, temperature = training.open_network("r01", SMALL, CAMVID)
    assert temperature == 1.5
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "classes", "says"),
    [
        (SMALL.model_copy(update={"width": 8}), CAMVID, "width 4, but params.yaml says 8"),
        (SMALL.model_copy(update={"name": "unet"}), CAMVID, "name 'small', but params.yaml says 'unet'"),
        (SMALL, CLASS_SETS["cityscapes19"], "classes .*'Sky'.* says .*'road'"),
    ],
)
def test_a_network_of_other_settings_is_refused(model: Model, classes: Any, says: str) -> None:
    network = training.new_network(SMALL, CAMVID, torch.Generator().manual_seed(3))
    artifacts.save_model("r01", network.state_dict(), training.describe(SMALL, CAMVID, 1.0))
    with pytest.raises(UserError, match=rf"data/models/r01 was made with {says}"):
        training.open_network("r01", model, classes)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from lightning_fabric import Fabric
from pipeline import batches, training
from tests.test_training import LIKELIHOOD, draw, one_convolution, plan
from pipeline.batches import Batch

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
rank = fabric.global_rank
rows = torch.arange(10.0).view(5, 2)
assert torch.equal(batches.gather(fabric, rows[rank::2], 5), rows), "gather"
assert training.total(fabric, torch.tensor([1, rank])).tolist() == [2, 1], "total"

def share(first):
    for step in range(first, 24):
        batch = draw(step)
        yield Batch(batch.images[rank::2], batch.masks[rank::2])

network = one_convolution()
training.fit(fabric, network, share, LIKELIHOOD, plan(frozen=True))
if rank == 0:
    torch.save(network.state_dict(), "two.pt")
"""


def test_two_processes_train_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("two.py").write_text(TWO_PROCESSES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "two.py"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    alone = one_convolution()
    fit(alone, LIKELIHOOD, plan(frozen=True, checkpoint=Path("alone.pt")))
    together = torch.load("two.pt", weights_only=True)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
