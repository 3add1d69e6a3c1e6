"""The form in which an alias is created, moved or split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pydantic import TypeAdapter, ValidationError

from app.core.errors import InvalidRequestError
from app.models.aliases.models import Alias
from app.models.aliases.schemas import AliasName, PutAlias, Reason

_MOST_MODELS = 16
_SPARE_ROWS = 2
_NAME = TypeAdapter[str](AliasName)
_REASON = TypeAdapter[str](Reason)


@dataclass(frozen=True, slots=True)
class Row:
    """A model of the split and its weight, as they were typed."""

    model: str = ""
    weight: str = ""


@dataclass(frozen=True, slots=True)
class MoveForm:
    """What was typed, or what an alias is now."""

    name: str
    rows: Sequence[Row]
    version: int | None
    """The version to replace; None if the alias is to be created."""
    reason: str = ""

    @classmethod
    def of(cls, alias: Alias) -> MoveForm:
        """Return the form as an alias is now."""
        rows = [Row(share["model"], f"{share['weight']:g}") for share in alias.split]
        return cls(alias.name, rows, alias.version)

    @classmethod
    def sent(
        cls, name: str, models: Sequence[str], weights: Sequence[str], version: int | None, reason: str
    ) -> MoveForm:
        """Return the form as it was sent, without its empty rows."""
        rows = [
            Row(model.strip(), weight.strip()) for model, weight in zip_longest(models, weights, fillvalue="")
        ]
        return cls(name.strip(), [row for row in rows if row.model][:_MOST_MODELS], version, reason.strip())

    @property
    def shown_rows(self) -> Sequence[Row]:
        """The rows with some that are empty, for more models."""
        return [*self.rows, *[Row()] * _SPARE_ROWS][:_MOST_MODELS]

    def request(self) -> PutAlias:
        """Return what it asks for.

        Raises:
            InvalidRequestError: a field is wrong; `param` names it.
        """
        _validate(_NAME, self.name, "name", _NAME_RULE)
        _validate(_REASON, self.reason, "reason", "A reason has at most 512 characters.")
        if not self.rows:
            raise InvalidRequestError(
                "Name the model that it should point to.", code="invalid_value", param="model"
            )
        target = {"model": self.rows[0].model} if len(self.rows) == 1 else {"split": [*self._split()]}
        more = {"version": self.version, "reason": self.reason or None}
        try:
            return PutAlias.model_validate(target | more)
        except ValidationError as error:
            where = str(error.errors()[0]["loc"][0])
            raise InvalidRequestError(
                f"This cannot be right: {error.errors()[0]['msg']}.", code="invalid_value", param=where
            ) from error

    def _split(self) -> Iterator[dict[str, object]]:
        for number, row in enumerate(self.rows, 1):
            try:
                weight = float(row.weight.replace(",", ".").removesuffix("%"))
            except ValueError:
                weight = math.nan
            if not 0 < weight <= 1_000_000:
                raise InvalidRequestError(
                    f"The weight of model {number} is to be a number above 0, such as 90.",
                    code="invalid_value",
                    param="split",
                )
            yield {"model": row.model, "weight": weight}


_NAME_RULE = (
    "An alias's name has small letters, digits, and : . _ - inside, such as house-style:production; "
    "at most 128 characters."
)


def _validate(kind: TypeAdapter[str], value: str, param: str, rule: str) -> None:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        raise InvalidRequestError(rule, code="invalid_value", param=param) from error
