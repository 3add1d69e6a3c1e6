"""Which of a base model's linear modules an adapter has weights for: a group of them, or some by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

_GROUPS = {
    "all-linear": re.compile(""),
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|feed_forward|ffn|expert|moe"),
}
"""The groups, by what is found in the names of the modules around a linear one."""


class UnknownModulesError(ValueError):
    """The base model lacks some of the modules that were asked for."""

    def __init__(self, unknown: list[str], known: list[str]) -> None:
        super().__init__(f"there is no {', '.join(unknown)}; there are: {', '.join(known)}")
        self.unknown = unknown
        self.known = known


def select(modules: Collection[str], wanted: str | Sequence[str]) -> list[str]:
    """Return those of the modules that `target_modules` asks for.

    Args:
        modules: the full names of the base model's linear modules.
        wanted: a group, or names, each a module's full name or the end of it, as in PEFT.

    Raises:
        UnknownModulesError: the base model has no module of a name, or none of the group.
    """
    names = [wanted] if isinstance(wanted, str) else wanted
    found = {name: [module for module in modules if _is_meant(module, name)] for name in names}
    if unknown := [name for name in names if not found[name]]:
        raise UnknownModulesError(unknown, sorted({last_name(module) for module in modules}))
    return sorted({module for each in found.values() for module in each})


def shorten(selected: Collection[str], modules: Iterable[str]) -> list[str]:
    """Return the selected modules' last names if those mean exactly these, else their full names."""
    last = {last_name(module) for module in selected}
    are_all = all(module in selected for module in modules if last_name(module) in last)
    return sorted(last if are_all else selected)


def last_name(module: str) -> str:
    """Return the last part of a module's full name."""
    return module.rpartition(".")[2]


def _is_meant(module: str, name: str) -> bool:
    if group := _GROUPS.get(name):
        return group.search(module.rpartition(".")[0]) is not None
    return module == name or module.endswith(f".{name}")
