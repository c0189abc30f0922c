"""AdamW held against torch's own class, which is what it stands for, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.optimiser import AdamW


def network() -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    made = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    for one in made.parameters():
        one.data = torch.randn(one.shape, generator=rng)
    return made


def groups(of: nn.Module) -> list[dict[str, Any]]:
    first, *rest = of.parameters()
    return [{"params": [first], "lr": 0.1, "weight_decay": 0.05}, {"params": rest, "lr": 0.02, "weight_decay": 0.0}]


def train(of: nn.Module, optimizer: Any, steps: range) -> None:
    """Its rates fall, and every third step one of the layers gets no gradient."""
    for step in steps:
        for group, peak in zip(optimizer.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = peak / (1 + step)
        images: Tensor = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        last = of[2] if step % 3 else nn.Identity()  # type: ignore[index]
        last(of[1](of[0](images))).square().mean().backward()  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a.parameters(), b.parameters(), strict=True))


def test_every_step_is_that_of_torch() -> None:
    ours, theirs = network(), network()
    optimizers = AdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    for step in range(12):
        for one, optimizer in zip((ours, theirs), optimizers, strict=True):
            train(one, optimizer, range(step, step + 1))
        assert same(ours, theirs)
    assert not same(ours, network())


@pytest.mark.parametrize("saved_by", [AdamW, torch.optim.AdamW])
def test_it_goes_on_from_its_own_state_and_from_that_of_torch(saved_by: type) -> None:
    undisturbed, resumed = network(), network()
    train(undisturbed, torch.optim.AdamW(groups(undisturbed)), range(9))
    first = saved_by(groups(resumed))
    train(resumed, first, range(4))
    second = AdamW(groups(resumed))
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(4, 9))
    assert same(resumed, undisturbed)
