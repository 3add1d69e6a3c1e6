"""The form of a job: what it sends, and where an error is shown."""

from __future__ import annotations

import pytest

from app.console.jobs.fields import fields_of
from app.console.jobs.request_form import field_of, read_form
from app.core.errors import InvalidRequestError
from app.fine_tuning.methods.hyperparameters import HYPERPARAMETERS

LEAST = {"training_file": "file-1", "model": "base"}


def test_every_declared_hyperparameter_has_a_field_of_its_method() -> None:
    named = {field.name for method in ("supervised", "dpo") for field in fields_of(method)}
    assert named == {each.name for each in HYPERPARAMETERS}
    assert "beta" not in {field.name for field in fields_of("supervised")}


def test_what_is_empty_or_auto_is_left_to_the_service() -> None:
    request = read_form(LEAST | {"hp.n_epochs": "", "hp.batch_size": " auto ", "suffix": " ", "seed": ""})
    assert request.model_dump(exclude_unset=True) == {
        "model": "base",
        "training_file": "file-1",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
    }


def test_what_is_entered_is_sent() -> None:
    entered = {
        "method": "dpo",
        "hp.beta": "0.2",
        "hp.n_epochs": "2",
        "hp.target_modules": "q_proj, v_proj",
        "hp.quantization": "nf4",
        "validation_file": "auto",
        "share": "0.2",
        "suffix": "soups",
        "seed": "7",
    }
    request = read_form(LEAST | entered).model_dump(exclude_unset=True)
    assert request["method"]["dpo"]["hyperparameters"] == {
        "beta": 0.2,
        "n_epochs": 2,
        "target_modules": ["q_proj", "v_proj"],
        "quantization": "nf4",
    }
    assert (request["validation_file"], request["validation_split"]) == ("auto", {"share": 0.2})
    assert (request["suffix"], request["seed"]) == ("soups", 7)


@pytest.mark.parametrize(
    ("entered", "field", "message"),
    [
        ({"hp.n_epochs": "99"}, "n_epochs", "less than or equal to 50"),
        ({"hp.n_epochs": "many"}, "n_epochs", "valid integer"),
        ({"hp.learning_rate": "nan"}, "learning_rate", "finite"),
        ({"hp.target_modules": "q proj, v"}, "target_modules", "pattern"),
        ({"seed": "-1"}, "seed", "greater than or equal to 0"),
        ({"suffix": "x" * 65}, "suffix", "at most 64 characters"),
        ({"validation_file": "auto", "share": "0.9"}, "share", "less than or equal to 0.5"),
        ({"training_file": ""}, "training_file", "Choose the dataset"),
    ],
)
def test_errors_name_their_field(entered: dict[str, str], field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refused:
        read_form(LEAST | entered)
    assert field_of(refused.value) == field
