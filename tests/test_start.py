"""Which heavy modules a command may not import before it begins: seconds of every start (docs/decisions/0020)."""

import subprocess
import sys

import pytest

from pipeline.stages import NETWORK, STAGES
from tests.conftest import ROOT

HEAVY = {
    "torch", "torch._dynamo", "torchvision", "sympy", "scipy", "pandas", "matplotlib", "albumentations", "cv2", "PIL",
    "segmentation_models_pytorch", "timm", "huggingface_hub", "label_studio_sdk", "dvc", "httpx", "sklearn",
}  # fmt: skip
READING = {"cv2", "PIL"}
LIGHT = tuple(stage for stage in STAGES if stage not in NETWORK)
MAY = {
    "status": set(),
    **{stage: set() for stage in LIGHT},
    "prepare": READING,
    "regions": {"cv2"},
    "annotate": READING | {"httpx", "dvc"},
    **{stage: READING | {"torch"} for stage in NETWORK},
    "score": READING | {"torch", "pandas"},
    "audit": READING | {"torch", "pandas"},
    "report": READING | {"pandas"},
}


def imported(code: str) -> set[str]:
    """The heavy modules that a fresh process has after the code."""
    told = f"{code}\nimport sys\nprint(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_stage_is_held_to_something() -> None:
    assert MAY.keys() == {"status", *STAGES}


@pytest.mark.parametrize("command", MAY)
def test_a_command_begins_without_what_it_may_never_need(command: str) -> None:
    where = "stages" if command in STAGES else "commands"
    found = imported(f"import pipeline.__main__, pipeline.{where}.{command}")
    assert found <= MAY[command]
    assert ("torch" in found) == (command in NETWORK)


STEP = """
import torch
from torch import nn
from pipeline.networks.devices import Devices
from pipeline.stages import pretrain, tune
from pipeline.training.optimiser import AdamW

network, devices = nn.Conv2d(3, 2, 1), Devices(precision="bf16-mixed")
wrapped, scaler = devices.wrap(network), devices.scaler()
optimizer = AdamW([{"params": list(network.parameters()), "lr": 0.1, "weight_decay": 0.1}])
with torch.random.fork_rng(devices=[]):
    scaler.scale(wrapped(torch.ones(1, 3, 4, 4)).square().mean()).backward()
scaler.unscale_(optimizer)
nn.utils.clip_grad_norm_(network.parameters(), 1.0)
scaler.step(optimizer)
scaler.update()
"""


def test_the_first_step_of_a_training_imports_no_compiler() -> None:
    assert imported(STEP) <= READING | {"torch"}
