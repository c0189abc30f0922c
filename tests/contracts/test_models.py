"""What every segmentation network must do. A new member of MODELS needs nothing here."""

import argparse
import re
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.networks.architectures import MODELS, auxiliary_head, build
from pipeline.networks.network import Network
from pipeline.training.optimiser import parameter_groups

CLASSES = 5
# the two with a large ResNet take seconds to make and differ from deeplabv3_mobilenet_v3_large in the backbone alone
LARGE = ("deeplabv3_resnet50", "deeplabv3_resnet101")
every_model = pytest.mark.parametrize("name", [name for name in MODELS if name not in LARGE])


def make(name: str, *, seed: int = 1, encoder: str = "mobilenet_v2", weights: str | None = None) -> Network:
    rng = torch.Generator().manual_seed(seed)
    return build(name, classes=CLASSES, encoder=encoder, weights=weights, width=32, rng=rng)


@cache
def made(name: str) -> Network:
    """Used to its input, as after training: freshly made, some give every image the same logits. Not to be changed."""
    network = make(name).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(images(64, 96, count=4, seed=9))
    return network.eval()


def images(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters())


@every_model
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50)])
def test_logits_are_finite_and_of_the_images_size(name: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        logits = made(name)(images(*size, count=2))
    assert logits.shape == (2, CLASSES, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_model
def test_out_of_training_the_pixels_of_a_class_lie_side_by_side(name: str) -> None:
    with torch.inference_mode():
        assert made(name)(images(64, 96, count=2)).stride(3) == 1


@every_model
def test_evaluation_is_deterministic_and_one_image_does_not_see_another(name: str) -> None:
    batch = images(64, 96, count=2)
    with torch.inference_mode():
        together = made(name)(batch)
        torch.testing.assert_close(made(name)(batch), together, rtol=0, atol=0)
        torch.testing.assert_close(made(name)(batch[1:]), together[1:], rtol=1e-3, atol=1e-3)
    assert not torch.equal(together[0], together[1])


@every_model
def test_gradient_reaches_every_trainable_parameter(name: str) -> None:
    network = make(name).train()
    # per pixel and class another factor, or a loss that batch norm undoes would have no gradient
    logits = network(images(64, 96, count=2))
    factors = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    (logits.softmax(1) * factors).sum().backward()
    without = [k for k, w in weights_of(network).items() if w.grad is None or not w.grad.isfinite().all()]
    assert not without
    untouched = [k for k, w in weights_of(network).items() if w.grad is not None and not w.grad.any()]
    assert not untouched


@every_model
def test_weights_come_from_the_generator_alone(name: str) -> None:
    torch.manual_seed(0)
    first = weights_of(make(name))
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    again, other = weights_of(make(name)), weights_of(make(name, seed=2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # building did not touch the global generator


@pytest.mark.parametrize("name", LARGE)
def test_large_models_give_logits(name: str) -> None:
    network = make(name).eval()
    with torch.inference_mode(), auxiliary_head(network, torch.Generator().manual_seed(1)):
        for logits in network(images(33, 50), auxiliary=True):
            assert logits.shape == (1, CLASSES, 33, 50)
            assert logits.isfinite().all()
    assert len(groups_of(network, lr_encoder=0.1, lr_head=10.0)) == 3


def test_images_are_normalised_as_imagenet_was() -> None:
    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.x = x
            return x

    body = Seen()
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1).expand(1, 3, 3, 5)
    out = Network(body, multiple=4)(mean.round().to(torch.uint8))
    assert out.shape == (1, 3, 3, 5)
    assert body.x.shape == (1, 3, 4, 8)
    assert body.x.abs().max() < 0.01
    white = Network(body, multiple=1)(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown model 'unett': did you mean 'unet'\? choose one of small, fpn, unet"):
        make("unett")
    with pytest.raises(UserError, match=r"unknown model\.encoder 'mobilenet': did you mean 'mobilenet_v2' .* mit_b0"):
        make("fpn", encoder="mobilenet")


def test_unknown_encoder_of_timm_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"unknown model\.encoder 'tu-nonsense'"):
        make("unet", encoder="tu-nonsense")
    assert make("unet", encoder="tu-resnet10t")


@pytest.mark.parametrize(
    ("name", "encoder", "width", "says"),
    [("fpn", "mobilenet_v2", 48, "width 48: .*divisible"), ("deeplabv3plus", "vgg11", 32, "'vgg11' .*dilated")],
)
def test_parts_that_do_not_go_together_are_a_sentence(name: str, encoder: str, width: int, says: str) -> None:
    with pytest.raises(UserError, match=f"model {name} with encoder .*{says}"):
        build(name, classes=CLASSES, encoder=encoder, weights=None, width=width, rng=torch.Generator())


def test_small_has_no_encoder_to_load_weights_into() -> None:
    with pytest.raises(UserError, match="`small` has no encoder"):
        make("small", weights="weights.pth")


@pytest.mark.parametrize("name", ["fpn", "lraspp_mobilenet_v3_large"])
def test_missing_and_unfitting_weights_are_sentences(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"weights\.pth' not found in .*: give the file of a state dict"):
        make(name, weights=str(path))
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"weights\.pth' do not fit the encoder: \d+ of its \d+ tensors are not in"):
        make(name, weights=str(path))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"weights\.pth' holds a list: give the file of a state dict"):
        make(name, weights=str(path))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
    for damaged, says in (
        (b"", r"is cut short, or no file of torch\.save"),
        (path.read_bytes()[:200], r"is cut short, or no file of torch\.save"),
        (b"id,name\n0,road\n", r"is cut short, or no file of torch\.save"),
        (b"\n<!DOCTYPE html>404", "is a web page"),
        (pointer, "is a pointer of Git LFS"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"weights\.pth' {says}"):
            make(name, weights=str(path))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        make(name, weights=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "encoder", "rename"),
    [
        ("fpn", "mobilenet_v2", lambda key: key),
        ("lraspp_mobilenet_v3_large", "mobilenet_v2", lambda key: f"features.{key}"),
        ("deeplabv3_mobilenet_v3_large", "mobilenet_v2", lambda key: f"features.{key}"),
    ],
)
def test_weights_of_a_file_are_in_the_encoder(name: str, encoder: str, rename, tmp_path: Path) -> None:
    other = make(name, seed=9).body
    part = other.encoder if name == "fpn" else other.backbone
    state = {rename(key): value for key, value in part.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "w.pth")  # a classifier's file has its head
    body = make(name, weights=str(tmp_path / "w.pth")).body
    loaded = (body.encoder if name == "fpn" else body.backbone).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in part.state_dict().items())


ENCODER = make("unet", seed=9).body.encoder.state_dict()
OTHERS = {"fc.weight": torch.zeros(2), "decoder.0.weight": torch.zeros(2)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in ENCODER.items()}


@pytest.mark.parametrize(
    "content",
    [
        prefixed("module."),
        prefixed("encoder.") | OTHERS,
        {"state_dict": prefixed("model.encoder.") | OTHERS, "epoch": 3, "hyper_parameters": argparse.Namespace(lr=1.0)},
        {
            "model": prefixed("module.backbone."),
            "best": np.float64(61.5),
            "optimizer": {"state": {}, "param_groups": []},
        },
        {"epoch": 1, "anything": prefixed("")},
        {name: value.half() for name, value in ENCODER.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=["DDP", "whole network", "Lightning", "wrapped twice", "wrapped", "half, without counters"],
)
def test_weights_are_found_in_what_trainings_save(content, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "w.pth")
    loaded = make("unet", weights=str(tmp_path / "w.pth")).body.encoder.state_dict()
    assert all(torch.allclose(loaded[name], value, atol=1e-2) for name, value in ENCODER.items())
    assert re.search(r"w\.pth: \d+ tensors taken", capsys.readouterr().out)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in prefixed("encoder.").items()}, tmp_path / "w.safetensors")
    loaded = make("unet", weights=str(tmp_path / "w.safetensors")).body.encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in ENCODER.items())
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is cut short"):
        make("unet", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (prefixed("student.") | prefixed("teacher."), "holds 2 encoders, 'student.' and 'teacher.'"),
        ({"epoch": 3, "lr": 0.1}, "holds 'epoch', 'lr', and no state dict"),
        (ENCODER | {"features.19.0.weight": torch.zeros(1)}, r"has layers that this encoder has not \(features\.19"),
        (ENCODER | {"features.0.0.weight": torch.zeros(1)}, r"features\.0\.0\.weight is \(1,\), not"),
        (ENCODER | {"features.0.0.weight": ENCODER["features.0.0.weight"] / 0}, "is not finite"),
        (make("fpn"), "holds a whole pickled network"),
    ],
    ids=["two", "none", "of a deeper one", "of a wider one", "not finite", "pickled"],
)
def test_weights_that_cannot_be_meant_are_a_sentence(content, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=says):
        make("unet", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["unet", "deeplabv3_mobilenet_v3_large"])
def test_imagenet_without_internet_is_a_sentence_within_seconds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"model\.weights is imagenet, but .* fetch https://\S+ elsewhere and set"):
        make(name, weights="imagenet")
    assert time.monotonic() - started < 30


def test_sizes_that_a_model_cannot_take_are_a_sentence() -> None:
    network = make("unet", encoder="tu-swin_tiny_patch4_window7_224")
    with pytest.raises(UserError, match=r"model\.size is \[64, 128\], which this model cannot take: .*224"):
        network.values_per_channel((64, 128))


def test_fewest_values_that_a_batch_norm_is_given() -> None:
    network = make("deeplabv3plus")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.values_per_channel((64, 64)) == 1  # pooled over the whole image
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert make("small").values_per_channel((16, 16)) == 1
    assert make("small").values_per_channel((33, 16)) == 3


def test_real_weights_are_in_the_encoder_and_nowhere_else(shared_data: Path) -> None:
    path = shared_data / "weights/mobilenet_v2_imagenet.pth"
    body = make("fpn", weights=str(path)).body
    state = torch.load(path, weights_only=True)
    loaded = body.encoder.state_dict()
    shared = set(state) & set(loaded)
    assert len(shared) > 200
    assert all(torch.equal(loaded[key], state[key]) for key in shared)
    fresh = make("fpn").body
    assert not torch.equal(fresh.encoder.features[0][0].weight, body.encoder.features[0][0].weight)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.parts.middle and name not in LARGE])
def test_auxiliary_head_is_there_while_it_trains_and_nowhere_else(name: str) -> None:
    network = make(name)
    before, batch = network.state_dict(), images(33, 50, count=2)
    kept = {key: value.clone() for key, value in before.items()}
    with auxiliary_head(network, torch.Generator().manual_seed(1)):
        assert network.training
        assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items() if key in kept)
        network.eval()
        alone = network(batch)
        logits, auxiliary = network(batch, auxiliary=True)
        torch.testing.assert_close(logits, alone, rtol=0, atol=0)
        assert auxiliary.shape == logits.shape
        factors = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
        (auxiliary.softmax(1) * factors).sum().backward()
        touched = {key for key, weight in weights_of(network).items() if weight.grad is not None and weight.grad.any()}
        assert {key for key in weights_of(network) if key.startswith("auxiliary.")} <= touched
        head = tuple(f"body.{part}." for part in network.parts.head)
        assert not any(key.startswith(head) for key in touched)  # a short way to the layers in front
        assert any(key.startswith("body.") for key in touched)
    assert network.state_dict().keys() == kept.keys()
    with pytest.raises(AssertionError, match="inside `auxiliary_head` only"):
        network(batch, auxiliary=True)


def test_auxiliary_head_comes_from_the_generator_alone() -> None:
    heads = []
    for seed in (1, 1, 2):
        network = make("small")
        with auxiliary_head(network, torch.Generator().manual_seed(seed)):
            heads.append(network.state_dict()["auxiliary.1.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def groups_of(network: Network, **changes: Any) -> list[dict[str, Any]]:
    plain = {"lr": 0.01, "weight_decay": 0.1, "lr_encoder": 1.0, "lr_head": 1.0, "decay_norms": True}
    return parameter_groups(network, **(plain | changes))


@every_model
def test_every_parameter_is_in_one_group_with_its_own_rate(name: str) -> None:
    network = make(name)
    parts, names = network.parts, {id(weight): key for key, weight in weights_of(network).items()}
    for lr_encoder, lr_head, decay_norms in product((1.0, 0.1), (1.0, 10.0), (True, False)):
        if lr_encoder != 1 and parts.encoder is None:
            continue
        groups = groups_of(network, lr_encoder=lr_encoder, lr_head=lr_head, decay_norms=decay_norms)
        assert sorted(names[id(weight)] for group in groups for weight in group["params"]) == sorted(names.values())
        for group in groups:
            assert group["lr"] == group["peak"]
            for weight in group["params"]:
                key = names[id(weight)].removeprefix("body.")
                of_head = any(key.startswith(f"{part}.") for part in parts.head)
                of_encoder = parts.encoder is not None and key.startswith(f"{parts.encoder}.")
                assert group["peak"] == 0.01 * (lr_encoder if of_encoder else lr_head if of_head else 1)
                assert group["weight_decay"] == (0.1 if decay_norms or weight.ndim > 1 else 0)
    (everything,) = groups_of(network)
    assert all(a is b for a, b in zip(everything["params"], network.parameters(), strict=True))


@every_model
def test_last_layer_makes_the_logits(name: str) -> None:
    network = make(name)
    for part in network.parts.head:
        shapes = [weight.shape[0] for weight in network.body.get_submodule(part).parameters()]
        assert shapes == [CLASSES, CLASSES]  # weight and bias of one convolution
    if network.parts.encoder:
        assert list(network.body.get_submodule(network.parts.encoder).parameters())


def test_parts_that_a_model_lacks_are_refused_with_the_models_that_have_them() -> None:
    with pytest.raises(UserError, match=r"lr_encoder is 0\.1, but .* no encoder: .* one of fpn, unet, .*resnet101$"):
        groups_of(make("small"), lr_encoder=0.1)
    without = make("lraspp_mobilenet_v3_large")
    says = r"no auxiliary head: set auxiliary to 0, or model\.name to one of small, fpn, .*resnet101$"
    with pytest.raises(UserError, match=says), auxiliary_head(without, torch.Generator()):
        raise AssertionError("it has none")


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if len(model.parts.head) == 1])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50)])
def test_cells_are_what_enters_and_leaves_the_last_layer(name: str, size: tuple[int, int]) -> None:
    network = made(name) if name not in LARGE else make(name).eval()
    hooks = dict(network.last_layer()._forward_hooks)
    with torch.inference_mode():
        expected = network(images(*size, count=2))
        logits, cells = network.with_cells(images(*size, count=2))
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(network.last_layer()(cells.features), cells.logits)
        kept = cells.logits.clone()
        logits.zero_()
        assert torch.equal(cells.logits, kept)  # not the same memory
    assert network.last_layer()._forward_hooks == hooks
    for pixels, places, across in zip(size, (cells.rows, cells.cols), cells.logits.shape[2:], strict=True):
        padded = -(-pixels // network.multiple) * network.multiple
        assert places.tolist() == [int((pixel + 0.5) * across / padded) for pixel in range(pixels)]
        assert places[-1] < across


@pytest.mark.parametrize("name", ["small", "unet", "deeplabv3_mobilenet_v3_large"])
def test_members_are_the_network_blind_to_some_features(name: str) -> None:
    network = made(name)
    with torch.inference_mode():
        cells = network.with_cells(images(64, 96, count=2))[1]
        alike = network.by_members(cells.features, network.thinned(3, 0.0, torch.Generator()))
        assert alike.shape == (3, *cells.logits.shape)
        torch.testing.assert_close(alike, cells.logits.expand(3, -1, -1, -1, -1))
        weights = network.thinned(64, 0.25, torch.Generator().manual_seed(1))
        found = network.by_members(cells.features, weights)
        kept = (weights != 0).any(1).any(-1).any(-1)  # (members, features)
        for member in (0, 63):
            seen = cells.features * kept[member][:, None, None] / 0.75
            torch.testing.assert_close(found[member], network.last_layer()(seen))
    spread = 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
    assert 0.75 - spread < float(kept.float().mean()) < 0.75 + spread
    assert len({tuple(row.tolist()) for row in kept}) > 1
    again, other = (network.thinned(64, 0.25, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(again, weights)
    assert not torch.equal(other, weights)


def test_model_with_two_last_layers_is_refused_with_those_that_have_one() -> None:
    network = make("lraspp_mobilenet_v3_large")
    says = r"this model has 2 last layers, .* set model\.name to one of small, fpn, .*resnet101, or score\.acquisition"
    for asks in (
        lambda: network.with_cells(images(64, 96)),
        lambda: network.thinned(2, 0.1, torch.Generator()),
    ):
        with pytest.raises(UserError, match=says):
            asks()
