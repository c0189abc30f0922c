"""What every segmentation network must do. A new member of MODELS needs nothing here."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models import MODELS, Network, build

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
    with torch.inference_mode():
        logits = make(name).eval()(images(33, 50))
    assert logits.shape == (1, CLASSES, 33, 50)
    assert logits.isfinite().all()


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
    with pytest.raises(UserError, match="unknown model 'unett': choose one of small, fpn, unet"):
        make("unett")
    with pytest.raises(UserError, match=r"unknown model\.encoder 'mobilenet': choose one of .*mobilenet_v2"):
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
    with pytest.raises(UserError, match=r"weights\.pth' not found: give the file of a state dict"):
        make(name, weights=str(path))
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"weights\.pth' do not fit the encoder: .*Missing key"):
        make(name, weights=str(path))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"weights\.pth' holds a list: give the file of a state dict"):
        make(name, weights=str(path))
    for damaged in (b"", b"<html>404</html>", path.read_bytes()[:200]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.pth' is cut short or no file of torch\.save"):
            make(name, weights=str(path))


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
