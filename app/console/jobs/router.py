"""`/console/jobs`: fine-tuning jobs."""

from __future__ import annotations

from fastapi import APIRouter

from app.console.jobs import creating, listing, overlaying, watching

router = APIRouter(include_in_schema=False)
for _pages in (listing, creating, overlaying, watching):  # `new` and `compare` before the ids of jobs
    router.include_router(_pages.router)
