"""How much each augmenter perturbs a model: its loss on augmented clean text, and its [CLS] vectors (MBTSAD, Eq. 9 and
Figure 3).

MBTSAD gives this reason for token splitting: of all augmenters it raises the victim's loss most (0.5333 nats, the only
figure in the paper), and its texts are separate from the clean ones, while their labels stay true. `perturbations`
measures both for each augmenter: the mean cross-entropy, Eq. (9), and a distance between the two clouds of [CLS]
vectors; `tsne` maps all clouds at once for the picture.

Choices where the paper is silent: [CLS] is the last hidden state, before the pooler; budgets are the settings' (Eq. (9)
needs equal ones, which MBTSAD's `auto` takes); the distance is ours. A t-SNE preserves neighbours and not distances, so
that the picture alone shows little.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.data import in_order
from minibd.mitigations.mbtsad import MBTSAD, AugmentResources, each_augmented, mean_loss
from minibd.records import BadInput, Example


class Perturbed(NamedTuple):
    """One set of N rows. loss: mean, nats. distance: from the clean cloud, 0 (equal) to 1. cls: (N, D) float32, CPU."""

    loss: float
    distance: float
    cls: Tensor


def perturbations(
    ckpt: Checkpoint, clean: Sequence[Example], settings: MBTSAD, seed: int, resources: AugmentResources
) -> dict[str, Perturbed]:
    """"clean" and then each augmenter, by name: loss and [CLS] vectors on one copy of each clean row."""
    sets = {"clean": list(clean), **each_augmented(clean, settings, seed, resources)}
    clouds = {name: cls_vectors(ckpt, rows) for name, rows in sets.items()}
    return {
        name: Perturbed(
            mean_loss(ckpt.model, ckpt.tokenizer, rows), cloud_distance(clouds["clean"], clouds[name]), clouds[name]
        )
        for name, rows in sets.items()
    }


@torch.inference_mode()
def cls_vectors(ckpt: Checkpoint, rows: Sequence[Example], batch_size: int = 128) -> Tensor:
    """The last hidden state of each row's first token (in a causal model its last): (N, D) float32, on the CPU."""
    model, encoded = ckpt.model.eval(), ckpt.tokenizer.encode(rows)
    device = next(model.parameters()).device
    found = torch.empty(len(encoded), model.config.hidden)
    for which in in_order(encoded.lengths, batch_size):
        # (B, D)
        found[which] = model.encode(ckpt.tokenizer.batch(encoded, which).to(device), pooled_only=True)[0].float().cpu()
    return found


def cloud_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance of two clouds, x (N, D) and y (M, D), over its maximum (Szekely and Rizzo, 2013).

    1 - (E|x - x'| + E|y - y'|) / (2 E|x - y|): 0 where both hold the same vectors, in any order; 1 where each is one
    point. Invariant to scale and rotation. The means are over all pairs, each vector with itself included.
    """
    def mean_distance(a: Tensor, b: Tensor) -> float:
        return sum(torch.cdist(part, b).sum().item() for part in a.split(1024)) / (len(a) * len(b))

    x, y = x.double(), y.double()
    across = mean_distance(x, y)
    return max(0.0, 1 - (mean_distance(x, x) + mean_distance(y, y)) / (2 * across)) if across else 0.0


def tsne(clouds: Sequence[Tensor], seed: int, perplexity: float = 30.0) -> list[Tensor]:
    """One t-SNE of all `clouds`, (N, D) each, together: (N, 2) each. perplexity is cut at a third of the vectors; the
    other settings are scikit-learn's defaults."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise BadInput("t-SNE is scikit-learn's, which is not installed: pip install -e '.[plots]'") from None
    vectors = torch.cat(list(clouds))
    placed = TSNE(perplexity=min(perplexity, (len(vectors) - 1) / 3), random_state=seed).fit_transform(vectors.numpy())
    return list(torch.from_numpy(placed).split([len(cloud) for cloud in clouds]))
