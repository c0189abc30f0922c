"""Likelihood losses: class-weighted cross-entropy, and the divergence that keeps a tuned model near its start.

    CE = (1/n) sum_i w_{t_i} (-log p_i(t_i))      w_c proportional to 1 / (n_c + smooth * sum_k n_k), their mean is 1
    CE of domains = sum_d s_d CE_d      CE_d over the labelled pixels of domain d alone, s_d its share of the loss
    Poly-1 = (1/n) sum_i w_{t_i} (-log p_i(t_i) + eps (1 - p_i(t_i)))      Leng et al. 2022, "PolyLoss"
    KL = (1/n) sum_i sum_c p_i(c) log(p_i(c) / q_i(c))

The weights are those of Pinto et al. 2023, "Tuning computer vision models with task rewards" (big_vision,
reward_tune/detection_reward.py, `cls_smooth`).

CE divides by the number n of valid pixels, where `torch.nn.functional.cross_entropy` divides by the sum of their
weights. Divided by the weights, a batch that shows one class only has the same loss whichever class it is, so the
weights cancel just where they matter, and the mean over batches or processes depends on how images are dealt to them.
Divided by pixels, the loss of a batch is an unbiased estimate of the loss of the set.

Divided by the pixels of its own domain, a target of which some regions are labelled keeps its share of the loss beside
a source that is labelled everywhere. Where every pixel has a label and s_d is the domain's share of the batch, the
average over all pixels is the same.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Real, UInt8
from torch import Tensor

from pipeline.images.classes import IGNORE


def class_weights(counts: Real[Tensor, " c"], smooth: float) -> Float32[Tensor, " c"]:
    """Weights from pixel counts: rarer classes weigh more, the mean over all classes is 1.

    Args:
        counts: labelled pixels of every class.
        smooth: share of all pixels that is added to every count; larger is closer to equal weights.

    Raises:
        ValueError: nothing was counted, or a class has no pixel and `smooth` is 0.
    """
    smoothed = counts.double() + smooth * counts.double().sum()
    if not (smoothed > 0).all():
        raise ValueError(f"class counts {counts.tolist()} with smooth {smooth} leave a class without a finite weight")
    weights = 1 / smoothed
    return (weights / weights.mean()).float()


def at_least_one(counts: Tensor) -> Tensor:
    """The counts, with 1 for 0, to divide by."""
    return counts.clamp(min=1)


def cross_entropy(
    logits: Float[Tensor, "n c h w"],
    truth: UInt8[Tensor, "n h w"],
    weights: Float[Tensor, " c"],
    *,
    poly1: float = 0.0,
    kept: float = 1.0,
    domains: Sequence[tuple[float, Bool[Tensor, "n #h #w"]]] = (),
    divisor: Callable[[Tensor], Tensor] = at_least_one,
) -> Float[Tensor, ""]:
    """Class-weighted cross-entropy per valid pixel, in nats; IGNORE is left out, no valid pixel at all gives 0.

    Args:
        logits: of the network.
        truth: class ids.
        weights: of the classes.
        poly1: eps of Poly-1: the gradient of a pixel whose class has probability p grows by the factor 1 + eps p.
        kept: share of the valid pixels that count, those with the largest losses; see `hardest`.
        domains: (share of the loss, which pixels) of each; the loss is averaged over the valid pixels of each by
            itself. Without any, over all of them together.
        divisor: what the sums are divided by, from the numbers of the pixels that count, one a domain.
    """
    valid = truth != IGNORE
    # On rows of pixels: the logits are channels_last here, and a copy to contiguous NCHW would take as long.
    rows, ids = logits.float().permute(0, 2, 3, 1).flatten(0, 2), truth.long().flatten()
    if not poly1 and kept == 1 and not domains:  # saves a tensor of all pixels' losses
        return F.cross_entropy(rows, ids, weights, ignore_index=IGNORE, reduction="sum") / divisor(valid.sum())
    if poly1:
        plain = F.cross_entropy(rows, ids, ignore_index=IGNORE, reduction="none")
        pixels = weights[ids.clamp(max=len(weights) - 1)] * (plain + poly1 * (1 - (-plain).exp()))
    else:
        pixels = F.cross_entropy(rows, ids, weights, ignore_index=IGNORE, reduction="none")  # 0 at IGNORE
    pixels = pixels.view(truth.shape)
    shares, chosen = [share for share, _ in domains] or [1.0], [valid & of for _, of in domains] or [valid]
    if kept == 1:
        counts = torch.stack([of.sum() for of in chosen])
        sums = torch.stack([(pixels * of).sum() for of in chosen])
    else:
        largest = [hardest(pixels[of], kept) for of in chosen]
        counts = torch.tensor([len(losses) for losses in largest], device=pixels.device)
        sums = torch.stack([losses.sum() for losses in largest])
    return (sums.new_tensor(shares) * sums / divisor(counts)).sum()


def hardest(pixels: Float[Tensor, " m"], kept: float) -> Float[Tensor, " k"]:
    """The largest losses: hard pixel mining as in DeepLab (train_utils.py, `top_k_percent`).

    There the share is of all pixels; here of those with a label, of which an image may have few.

    Args:
        pixels: loss of each valid pixel.
        kept: share of them that is kept; of any, at least one.
    """
    return pixels.topk(min(len(pixels), max(1, int(kept * len(pixels)))), sorted=False).values


def kept_share(step: int, ramp: float, hard: float) -> float:
    """Share of the pixels that is kept at a step: from 1 at the first step linearly to `hard` at step `ramp`.

    >>> [kept_share(step, 4.0, 0.2) for step in (0, 2, 4, 9)]
    [1.0, 0.6, 0.2, 0.2]
    """
    ratio = min(1.0, step / ramp) if ramp else 1.0
    return ratio * hard + (1 - ratio)


def kl(
    logits: Float[Tensor, "n c h w"], reference_logits: Float[Tensor, "n c h w"], valid: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """KL(p || reference) per valid pixel, in nats, no valid pixel at all gives 0. Gradients reach both arguments."""
    log_p = logits.float().log_softmax(1)
    log_ratio = log_p - reference_logits.float().log_softmax(1)
    divergence = (log_p.exp() * log_ratio).sum(1)
    return divergence[valid].sum() / valid.sum().clamp(min=1)


def entropy(logits: Float[Tensor, "n c h w"], valid: Bool[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Shannon entropy of the labels per valid pixel, in nats, no valid pixel at all gives 0."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)[valid].sum() / valid.sum().clamp(min=1)
