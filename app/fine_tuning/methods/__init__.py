"""The methods of fine-tuning, by name; each is declared in a module of its own."""

from __future__ import annotations

from app.fine_tuning.methods.dpo import DPO
from app.fine_tuning.methods.method import Method
from app.fine_tuning.methods.supervised import Supervised

METHODS: dict[str, Method] = {method.name: method for method in (Supervised(), DPO())}
"""The objective that each trains on is registered in `workers.training.objectives`."""

DEFAULT_METHOD = Supervised.name
"""The method of a request that names none."""
