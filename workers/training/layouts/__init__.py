"""The two layouts of a micro-batch, and how a base model computes one.

`app.models.token_mixing` chooses the layout. Everything after the choice works with a `Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from app.fine_tuning.packing import Sequences
from app.models.token_mixing import Layout, has_soft_cap
from workers.training.layouts import packed
from workers.training.layouts.batch import Batch
from workers.training.layouts.packed import pack
from workers.training.layouts.padded import pad

__all__ = ["Batch", "Layout", "collate", "set_layout", "target_logits"]

_COLLATE: dict[Layout, Callable[[Iterable[Sequences]], Batch]] = {"packed": pack, "padded": pad}


def collate(layout: Layout, examples: Iterable[Sequences]) -> Batch:
    """Make one batch of the examples' sequences."""
    return _COLLATE[layout](examples)


def set_layout(base: PreTrainedModel, layout: Layout) -> None:
    """Let the base compute batches of this layout from now on."""
    attention = packed.ATTENTION if layout == "packed" else _own_attention(base)
    cast(Any, base).set_attn_implementation(attention)


def _own_attention(base: PreTrainedModel) -> str:
    """Choose the fastest of the attentions that transformers computes exactly for this architecture.

    `scaled_dot_product_attention` has no soft cap, and transformers passes over the base's in silence.
    """
    config: dict[str, Any] = cast(Any, base.config).get_text_config().to_dict()
    is_exact = cast(Any, base)._supports_sdpa and not has_soft_cap(config)
    return "sdpa" if is_exact else "eager"


def target_logits(base: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the logits of the batch's targets only, [T, vocabulary] in fp32.

    The hidden states that predict them are chosen before the output layer, so that whatever the architecture
    does with logits (scales, soft caps) is done with these.
    """

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        hidden = inputs[0]
        return hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, batch.predicting)

    output_layer = cast(nn.Module, cast(Any, base).get_output_embeddings())
    hook = output_layer.register_forward_pre_hook(choose)
    try:
        output = cast(Any, base)(**batch.model_inputs(base.dtype), use_cache=False)
    finally:
        hook.remove()
    return output.logits[0].float()
