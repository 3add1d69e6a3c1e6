"""What routers ask for: the checker of uploaded files."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from app.files.checker import Checker


async def _checker(request: Request) -> Checker:
    return cast("Checker", request.app.state.checker)


CheckerDep = Annotated[Checker, Depends(_checker)]
