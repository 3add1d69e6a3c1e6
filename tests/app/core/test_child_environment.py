"""Which of a process's secrets its children have."""

from __future__ import annotations

import pytest

from app.core.child_environment import TRACKERS, child_environment, engine_environment

SECRETS = {
    "MLFLOW_TRACKING_URI": "http://mlflow",
    "TRACKIO_SERVER_URL": "http://host/?write_token=abc",
    "WANDB_API_KEY": "key",
    "HF_TOKEN": "token",
    "PIP_INDEX_URL": "https://user:password@index",
    "HTTPS_PROXY": "https://user:password@proxy",
}


@pytest.mark.parametrize(
    ("tracker", "expected"),
    [
        ("", set()),
        ("mlflow", {"MLFLOW_TRACKING_URI", "HTTPS_PROXY"}),
        ("trackio", {"TRACKIO_SERVER_URL", "HF_TOKEN", "HTTPS_PROXY"}),
        ("wandb", {"WANDB_API_KEY", "HTTPS_PROXY"}),
    ],
)
def test_a_child_has_the_secrets_of_its_tracker_alone(
    monkeypatch: pytest.MonkeyPatch, tracker: str, expected: set[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    found = child_environment(TRACKERS[tracker], has_settings=True)
    assert found.keys() & SECRETS.keys() == expected


@pytest.mark.parametrize(
    ("url", "has_access"), [(None, False), ("", False), ("file:///data", False), ("s3://bucket/prefix", True)]
)
def test_only_a_bucket_needs_the_clouds_credentials(
    monkeypatch: pytest.MonkeyPatch, url: str | None, has_access: bool
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    if url is not None:
        monkeypatch.setenv("TOQUE_STORAGE_URL", url)
    assert ("AWS_SECRET_ACCESS_KEY" in engine_environment()) == has_access


def test_a_proxy_without_a_password_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy")
    assert child_environment()["HTTPS_PROXY"] == "https://proxy"
