"""The command `python -m workers.training.self_test FOLDER [nf4]`: how the base in a folder can be trained.

It prints one JSON object: the layout (`packed`, as long as no example is longer than the base's attention
window, `padded`, or null if it cannot be trained), the reason, and the largest difference in nats between a
batch and its sequences alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch

from workers.training.layouts.self_test import self_test
from workers.training.model import load_base
from workers.training.quantization import Quantization


def main() -> None:
    """Test the base in the folder that is named on the command line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantization = msgspec.convert(sys.argv[2] if len(sys.argv) > 2 else "none", Quantization)
    print(msgspec.json.encode(self_test(load_base(Path(sys.argv[1]), device, quantization))).decode())


if __name__ == "__main__":
    main()
