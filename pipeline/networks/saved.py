"""What a saved model holds: its weights, and beside them architecture, class names and calibration."""

from typing import Any

import torch

from pipeline import artifacts, paths
from pipeline.errors import UserError
from pipeline.images.classes import ClassSet
from pipeline.networks import architectures
from pipeline.networks.calibration import Calibration, of_temperature
from pipeline.networks.network import Network
from pipeline.params import Model


def new_network(model: Model, classes: ClassSet, run_rng: torch.Generator) -> Network:
    """The network that the section `model` describes: new weights, or `model.weights` for its encoder."""
    return architectures.build(
        model.name,
        classes=len(classes.names),
        encoder=model.encoder,
        weights=model.weights,
        width=model.width,
        rng=run_rng,
    )


def describe(model: Model, classes: ClassSet, calibration: Calibration) -> dict[str, Any]:
    """The description saved beside the weights: `open_network` needs it to use them, or to refuse them."""
    return {
        "name": model.name,
        "encoder": model.encoder,
        "width": model.width,
        "classes": list(classes.names),
        "calibration": calibration.lists(),
    }


def open_network(round_name: str, model: Model, classes: ClassSet) -> tuple[Network, Calibration]:
    """A round's network, and the calibration of its logits.

    Raises:
        UserError: the file was made with another architecture or class set, or a weight is not finite.
    """
    state, about = artifacts.load_model(round_name)
    broken = [name for name, weight in state.items() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{paths.model(round_name)}: the weights {broken[0]} are not finite: run `dvc checkout -f "
            f"{paths.model(round_name)}`, or train it again with a lower lr"
        )
    if "calibration" in about:
        calibration = Calibration.of_lists(about["calibration"])
    else:  # of a version that knew temperatures only
        calibration = of_temperature(about["temperature"])
    for name, value in describe(model, classes, calibration).items():
        if name != "calibration" and about[name] != value:
            raise UserError(
                f"{paths.model(round_name)} was made with {name} {about[name]!r}, but {paths.PARAMS} says {value!r}: "
                f"run `dvc repro` to make it anew, or set {paths.PARAMS} back"
            )
    network = new_network(model.model_copy(update={"weights": None}), classes, torch.Generator().manual_seed(0))
    network.load_state_dict(state)
    return network, calibration
