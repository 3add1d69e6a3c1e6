"""The trainer in fp32 on any CPU, so that what is equal but for rounding can be told from what is not.

`python -m tests.support.exact_trainer FOLDER`: each process writes there, in a file named after its rank
and the number of ranks, how many bytes of the base model it holds, and of how many.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.support import held_trainer
from workers.training import model, trainer
from workers.training.model import WarmBase
from workers.training.quantization import Quantization
from workers.training.ranks import Ranks
from workers.training.sharding import local


def main(folder: Path) -> None:
    load = trainer.load_warm_base

    def load_and_measure(
        base_model_dir: Path, ranks: Ranks, quantization: Quantization, *more: Any
    ) -> WarmBase:
        base = load(base_model_dir, ranks, quantization, *more)
        held = sum(local(weight).nbytes for weight in base.model.parameters())
        whole = sum(weight.numel() * weight.element_size() for weight in base.model.parameters())
        (folder / f"{ranks.rank} of {ranks.size}").write_text(f"{held} {whole}")
        return base

    model.compute_dtype = lambda _: torch.float32
    trainer.load_warm_base = load_and_measure
    held_trainer.hold(trainer)
    trainer.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
