"""No secret of a tracker is in the log of the process that sends to it, whatever its library says."""

from __future__ import annotations

import io
import logging

import pytest

from workers.tracking.redaction import RedactedFormatter


@pytest.mark.parametrize(
    ("secret", "error", "logged"),
    [
        (
            "http://user:s3cret@host/path",
            "http://user:s3cret@host/path is away, s3cret",
            "http://***@host/path is away, ***",
        ),
        (
            "http://host/?write_token=t0ken",
            "no answer from host: url: /?write_token=t0ken",
            "no answer from host: url: /?***",
        ),
        ("wandb-key", "invalid key wandb-key", "invalid key ***"),
        ("", "https://other:password@proxy is away", "https://***@proxy is away"),
    ],
)
def test_a_traceback_has_no_secrets(secret: str, error: str, logged: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactedFormatter(logging.Formatter(), [secret]))
    log = logging.Logger("toque.tracking")
    log.addHandler(handler)
    try:
        raise ConnectionError(error)
    except ConnectionError:
        log.exception("metrics cannot be sent")
    assert f"ConnectionError: {logged}\n" in stream.getvalue()
    assert not secret or secret not in stream.getvalue()
