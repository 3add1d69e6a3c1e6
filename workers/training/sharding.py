"""The base model sharded across ranks, so that each holds its share of every weight (FSDP2).

A decoder layer's weights are gathered while it computes, forward and backward, and freed again. LoRA is added
to the sharded model, so its weights are not sharded: every rank has all of them, and sums their gradients
(`Ranks.sum_gradients`).
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from workers.training.decoder_layers import decoder_layers
from workers.training.ranks import Ranks


def shard(model: PreTrainedModel, ranks: Ranks) -> None:
    """Shard the model's weights across the ranks, one decoder layer after another, on the ranks' devices.

    On a GPU, at most one layer is there as a whole at any time.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for layer in list(decoder_layers(model)):
        fully_shard(layer, mesh=mesh)
    # The embeddings, too, are freed between forward and backward: of a small model they are the largest part.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def local(weight: Tensor) -> Tensor:
    """Return what this process holds of a weight, sharded or not."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
