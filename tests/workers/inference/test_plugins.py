"""The plugins that every vLLM process loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.inference import lora_kernels, lora_resolver
from workers.inference.lora_kernels import UntestedVersionError, check_version
from workers.inference.vllm_process import missing_plugins


def test_a_vllm_that_is_not_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOQUE_ENGINE", raising=False)
    monkeypatch.setattr(lora_resolver, "die_with_parent", lambda: pytest.fail("not a child of ours"))
    monkeypatch.setattr(lora_kernels, "check_version", lambda _: pytest.fail("not a vLLM of ours"))
    lora_resolver.register()
    lora_kernels.register()


def test_loading_them_imports_nothing_heavy() -> None:
    modules = "workers.inference.lora_kernels, workers.inference.lora_resolver"
    check = f"import sys, {modules}; sys.exit(bool({{'torch', 'vllm'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_untested_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_version("0.32.0")
    check_version("0.32.1+cpu")
    with pytest.raises(UntestedVersionError, match=r"0\.33\.0 was not tested"):
        check_version("0.33.0")
    monkeypatch.setenv("TOQUE_ALLOW_UNTESTED_VLLM", "1")
    check_version("0.33.0")


def test_both_are_installed() -> None:
    assert missing_plugins() == []
