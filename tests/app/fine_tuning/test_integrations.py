"""Integrations of jobs: accepted where the operator has set W&B, and shown as they were requested."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from app.core.settings import Settings
from tests.support.jobs import create, upload

pytestmark = pytest.mark.one_database

WANDB = {"project": "soups", "name": "first try", "entity": "kitchen", "tags": ["a", "b"]}


def test_an_integration_is_refused_where_no_operator_has_set_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="TOQUE_TRACKER=wandb") as caught:
        create(client, integrations=[{"type": "wandb", "wandb": WANDB}])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "integrations")


def test_an_integration_is_shown_as_it_was_requested(settings: Settings, client: OpenAI) -> None:
    settings.tracker, settings.tracker_entities = "wandb", ["kitchen"]
    job = create(client, integrations=[{"type": "wandb", "wandb": WANDB}])
    shown = client.fine_tuning.jobs.retrieve(job.id).integrations
    assert shown is not None
    assert [each.to_dict() for each in shown] == [{"type": "wandb", "wandb": WANDB}]
    plain = create(client, integrations=[{"type": "wandb", "wandb": {"project": "soups", "name": None}}])
    assert plain.to_dict()["integrations"] == [{"type": "wandb", "wandb": {"project": "soups"}}]
    assert create(client).integrations == []


@pytest.mark.parametrize(
    ("integrations", "param"),
    [
        ([{"type": "mlflow", "wandb": WANDB}], "integrations[0].type"),
        ([{"type": "wandb"}], "integrations[0].wandb"),
        ([{"type": "wandb", "wandb": {}}], "integrations[0].wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "a/b"}}], "integrations[0].wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "p", "host": "h"}}], "integrations[0].wandb.host"),
        ([{"type": "wandb", "wandb": WANDB | {"name": "x" * 129}}], "integrations[0].wandb.name"),
        ([{"type": "wandb", "wandb": WANDB | {"tags": ["t"] * 17}}], "integrations[0].wandb.tags"),
        ([{"type": "wandb", "wandb": WANDB}] * 2, "integrations"),
        ([{"type": "wandb", "wandb": WANDB | {"entity": "pantry"}}], "integrations[0].wandb.entity"),
    ],
)
def test_a_wrong_integration_is_refused_by_its_field(
    settings: Settings, client: OpenAI, integrations: Any, param: str
) -> None:
    settings.tracker, settings.tracker_entities = "wandb", ["kitchen"]
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, training_file="file-none", integrations=integrations)
    assert caught.value.param == param


def test_a_dry_run_refuses_it_as_well(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="TOQUE_TRACKER"):
        create(
            client,
            training_file=upload(client),
            integrations=[{"type": "wandb", "wandb": WANDB}],
            extra_body={"dry_run": True},
        )
