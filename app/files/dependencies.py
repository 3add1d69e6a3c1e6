"""What routers ask for of the checks."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from app.files.checker import Checker


def _checker(request: Request) -> Checker:
    return cast("Checker", request.app.state.checker)


CheckerDep = Annotated[Checker, Depends(_checker)]
