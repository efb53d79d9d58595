"""Which augmenter shakes the model: its loss on augmented clean text, and where its [CLS] vectors go (MBTSAD, Eq. 9 and
Figure 3).

MBTSAD explains token splitting so: of all augmenters it raises the victim's loss most (0.5333 nats, the one figure that
the paper gives), and its texts lie apart from the clean ones, while their labels stay true. `perturbations` has both as
numbers, a set an augmenter: the mean cross-entropy, Eq. (9), and a distance between the two clouds of [CLS] vectors;
`tsne` maps all clouds at once for the picture.

Choices where the paper is silent: [CLS] is the last hidden state, before the pooler; budgets are the settings' (Eq. (9)
asks for equal ones, and MBTSAD's `auto` takes those); the distance is ours. A t-SNE keeps neighbours and no distances,
so that the picture alone shows little.
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
    """One set of N rows. loss: nats, mean. distance: from the clean cloud, 0 (the same) to 1. cls: (N, D) float32, on
    the CPU."""

    loss: float
    distance: float
    cls: Tensor


def perturbations(
    ckpt: Checkpoint, clean: Sequence[Example], settings: MBTSAD, seed: int, resources: AugmentResources
) -> dict[str, Perturbed]:
    """"clean" and then each augmenter, by name: what the model makes of one copy of each clean row."""
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
    """The last hidden state of each row's first token (in a causal model the last), in the rows' order: (N, D) float32,
    on the CPU."""
    model, encoded = ckpt.model.eval(), ckpt.tokenizer.encode(rows)
    device = next(model.parameters()).device
    found = torch.empty(len(encoded), model.config.hidden)
    for which in in_order(encoded.lengths, batch_size):
        # (B, D)
        found[which] = model.encode(ckpt.tokenizer.batch(encoded, which).to(device), pooled_only=True)[0].float().cpu()
    return found


def cloud_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance of two clouds, x (N, D) and y (M, D), as a share of its most: 1 - (E|x - x'| + E|y - y'|) / (2
    E|x - y|).

    0 where both hold the same vectors, in whatever order; 1 where each is a point of its own. It does not change with
    scale or rotation. Szekely and Rizzo (2013); the means are over all pairs, a vector with itself among them.
    """
    def apart(a: Tensor, b: Tensor) -> float:
        return sum(torch.cdist(part, b).sum().item() for part in a.split(1024)) / (len(a) * len(b))

    x, y = x.double(), y.double()
    across = apart(x, y)
    return max(0.0, 1 - (apart(x, x) + apart(y, y)) / (2 * across)) if across else 0.0


def tsne(clouds: Sequence[Tensor], seed: int, perplexity: float = 30.0) -> list[Tensor]:
    """One t-SNE of all `clouds`, each (N, D), together: (N, 2) each. perplexity: at most a third of the vectors; the
    rest is scikit-learn's."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise BadInput("t-SNE is scikit-learn's, which is not installed: pip install -e '.[plots]'") from None
    vectors = torch.cat(list(clouds))
    placed = TSNE(perplexity=min(perplexity, (len(vectors) - 1) / 3), random_state=seed).fit_transform(vectors.numpy())
    return list(torch.from_numpy(placed).split([len(cloud) for cloud in clouds]))
