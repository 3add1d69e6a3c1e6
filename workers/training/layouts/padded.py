"""The padded layout: one sequence a row, padded on the right, through the architecture's own attention.

There is no mask for the padding. In a causal model nothing flows from a token to an earlier one, be it by
attention, convolution or a state, so what follows a sequence in its row cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from app.fine_tuning.packing import PaddedRows, Sequences
from workers.training.layouts.batch import Batch

_PADDING = 0
"""Any token will do, and every vocabulary has this one."""


def pad(examples: Iterable[Sequences]) -> Batch:
    """Turn the rows of the examples' sequences into tensors."""
    rows = PaddedRows.of(examples)
    width = rows.width
    predicting: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    for number, (part, tokens) in enumerate(zip(rows.sequences, rows.inputs, strict=True)):
        for place in range(1, len(tokens) + 1):
            if part.target_mask[place]:
                predicting.append(number * width + place - 1)
                targets.append(part.input_ids[place])
                sequence.append(number)
    return Batch(
        input_ids=torch.tensor([[*tokens, *[_PADDING] * (width - len(tokens))] for tokens in rows.inputs]),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        sequence=torch.tensor(sequence),
        sequences=len(rows.inputs),
    )
