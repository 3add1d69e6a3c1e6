"""What somebody has entered into the form of a job, as the request that the API takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.console.jobs.fields import Field, fields_of
from app.core.errors import InvalidRequestError, ToqueError
from app.core.validation_errors import validation_error
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.schemas import AUTO_SPLIT, CreateJob


def read_form(entered: Mapping[str, str]) -> CreateJob:
    """Return the request; what is empty is left to the service.

    Raises:
        InvalidRequestError: the API would refuse it with this message, too.
    """
    body = _body({name: value.strip() for name, value in entered.items()})
    try:
        return CreateJob.model_validate(body)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise validation_error(problems, body) from None


def method_of(entered: Mapping[str, str]) -> str:
    """Return the method that was chosen, or the default."""
    method = entered.get("method", "")
    return method if method in METHODS else DEFAULT_METHOD


def field_of(error: ToqueError) -> str | None:
    """Return the name of the form's field that an error is about: the last part of its parameter's path."""
    param = (error.body.param or "").partition("[")[0].rpartition(".")[2]
    return param or None


def _body(entered: Mapping[str, str]) -> dict[str, Any]:
    if not entered.get("training_file"):
        raise InvalidRequestError(
            "Choose the dataset to train on.", code="missing_required_parameter", param="training_file"
        )
    method, validation = method_of(entered), entered.get("validation_file", "")
    given = {field.name: entered.get(field.key, "") for field in fields_of(method)}
    body: dict[str, Any] = {
        "model": entered.get("model", ""),
        "training_file": entered["training_file"],
        "method": {
            "type": method,
            method: {
                "hyperparameters": {
                    field.name: _value(field, given[field.name])
                    for field in fields_of(method)
                    if given[field.name] not in ("", "auto")
                }
            },
        },
    }
    if validation:
        body["validation_file"] = validation
    if validation == AUTO_SPLIT and (share := entered.get("share")):
        body["validation_split"] = {"share": _number(share)}
    if suffix := entered.get("suffix"):
        body["suffix"] = suffix
    if seed := entered.get("seed"):
        body["seed"] = _number(seed)
    return body


def _value(field: Field, text: str) -> Any:
    if field.kind == "number":
        return _number(text)
    if field.kind == "names" and text not in field.words:
        return [name.strip() for name in text.split(",")]
    return text


def _number(text: str) -> int | float | str:
    """Return the number that the text is, or the text, which the service refuses with its own message."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
