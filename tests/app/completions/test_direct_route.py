"""A direct route runs no dependencies, so one that has any is refused when it is built."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel

from app.completions.router import CallerDep, DirectRoute
from app.completions.router import router as completions_router


class Body(BaseModel):
    text: str


def rate_limit() -> None:
    raise AssertionError("it is never run")


async def endpoint(body: Body, request: Request, caller: CallerDep) -> Response:
    return Response()


async def limited(
    body: Body, request: Request, caller: CallerDep, limit: Annotated[None, Depends(rate_limit)]
) -> Response:
    return Response()


async def with_header(
    body: Body, request: Request, caller: CallerDep, x_priority: Annotated[str, Header()] = "low"
) -> Response:
    return Response()


def test_an_endpoint_without_dependencies_is_taken() -> None:
    APIRouter(route_class=DirectRoute).post("/direct")(endpoint)


def test_a_dependency_of_the_endpoint_is_refused() -> None:
    with pytest.raises(TypeError, match=r"/direct .* rate_limit"):
        APIRouter(route_class=DirectRoute).post("/direct")(limited)


def test_a_dependency_of_the_route_or_the_router_is_refused() -> None:
    router = APIRouter(route_class=DirectRoute, dependencies=[Depends(rate_limit)])
    with pytest.raises(TypeError, match="rate_limit"):
        router.post("/direct")(endpoint)
    with pytest.raises(TypeError, match="rate_limit"):
        APIRouter(route_class=DirectRoute).post("/direct", dependencies=[Depends(rate_limit)])(endpoint)


def test_a_dependency_of_the_app_is_refused() -> None:
    with pytest.raises(TypeError, match=r"/v1/chat/completions .* rate_limit"):
        FastAPI(dependencies=[Depends(rate_limit)]).include_router(completions_router)
    with pytest.raises(TypeError, match="rate_limit"):
        FastAPI().include_router(completions_router, dependencies=[Depends(rate_limit)])


def test_a_parameter_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(TypeError, match="x_priority"):
        APIRouter(route_class=DirectRoute).post("/direct")(with_header)
