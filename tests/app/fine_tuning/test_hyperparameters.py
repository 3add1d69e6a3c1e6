"""Everything that speaks of hyperparameters and metrics says what their one declaration says."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import msgspec
import pytest

from app.cli import jobs
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import HYPERPARAMETERS, Hyperparameters, taken_by
from app.fine_tuning.methods.method import Method
from app.fine_tuning.methods.metrics import RESULT_COLUMNS, Metrics
from app.fine_tuning.packing import Work
from app.fine_tuning.requested_hyperparameters import (
    LoraHyperparameters,
    RequestedHyperparameters,
    request_model,
)
from app.fine_tuning.schemas import CheckpointMetrics, ResolvedHyperparameters
from docs.generate import API_PAGE, with_hyperparameters

NAMES = {each.name for each in HYPERPARAMETERS}


def test_the_table_in_the_docs_is_current() -> None:
    page = API_PAGE.read_text("utf-8")
    assert page == with_hyperparameters(page), "run `make generated`"


def test_the_trainer_takes_what_a_request_may_set() -> None:
    assert {each.name for each in msgspec.structs.fields(Hyperparameters)} == NAMES | {"max_grad_norm"}
    assert set(ResolvedHyperparameters.model_fields) == NAMES


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_request_may_set_what_its_method_takes(method: Method) -> None:
    model = request_model(method)
    assert set(model.model_fields) == {each.name for each in taken_by(method)}
    assert issubclass(model, RequestedHyperparameters)


def test_only_what_openai_lacks_may_be_given_at_the_top_of_a_request() -> None:
    openais = {"n_epochs", "batch_size", "learning_rate_multiplier"}
    assert set(LoraHyperparameters.model_fields) == NAMES - openais - {"beta"}


@pytest.mark.parametrize("command", [jobs.create, jobs.check])
def test_commands_have_an_option_for_every_hyperparameter(command: Callable[..., None]) -> None:
    assert set(inspect.signature(command).parameters) > NAMES


def test_checkpoints_show_every_metric_and_the_result_file_some() -> None:
    metrics = {each.name for each in msgspec.structs.fields(Metrics)}
    assert set(CheckpointMetrics.model_fields) == metrics
    assert set(RESULT_COLUMNS.values()) < metrics


def test_stored_work_keeps_its_names() -> None:
    stored = {"steps": 1, "pieces": 2, "tokens": 3, "rows": 4, "scores": 5, "targets": 6, "checkpoints": 7}
    kept: dict[str, float] = msgspec.to_builtins(msgspec.convert(stored, Work))
    assert {name: kept[name] for name in stored} == stored
    assert all(kept[name] == 0 for name in kept.keys() - stored.keys()), "what was counted later"
