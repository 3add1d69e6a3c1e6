"""Writes the pictures of the console in docs/screenshots: `make screenshots`.

The pages are those of a real service, in Chromium, with `tests.support.shown_project`: the demo's data, with
jobs and answers that are made up.
"""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import SecretStr

from app.auth import service as auth_service
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from tests.support.base_models import prepared_base_models
from tests.support.chromium import launch
from tests.support.service import API_KEY, Service, close_loop, run_service
from tests.support.shown_project import ALIAS, ShownProject, shown_project

FOLDER = Path(__file__).parent / "screenshots"
MOST_BYTES = 120_000
_COLOURS = 128


@dataclass(frozen=True, slots=True)
class Shot:
    """A page, and how it is looked at."""

    name: str
    path: str
    scheme: Literal["light", "dark"] = "light"
    width: int = 1280
    height: int = 800
    scroll_to: str | None = None
    """What stands at the top of the picture, in place of the page's beginning."""


def shots(shown: ShownProject) -> list[Shot]:
    """Return what is taken."""
    job = f"/jobs/{shown.job}"
    comparison = f"/comparisons/{shown.comparison}"
    return [
        Shot("overview", ""),
        Shot("dataset", f"/datasets/{shown.training_file}"),
        Shot("examples", f"/datasets/{shown.training_file}/examples"),
        Shot("job", job, height=1000, scroll_to="#pictures-title"),
        Shot("comparison", comparison, height=900),
        Shot("model-dark", f"/models/{quote(shown.model, safe='')}", "dark"),
        Shot("alias", f"/aliases/{ALIAS}", height=900),
        Shot("comparison-small", comparison, width=360, height=740),
    ]


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            database_url=f"sqlite:///{folder}/toque.db",
            models_dir=prepared_base_models(),
            api_key=SecretStr(API_KEY),
        )
        upgrade(settings.sqlalchemy_url)
        database = Database(settings.sqlalchemy_url)
        with database.writer() as session:
            auth_service.ensure_first_key(session, API_KEY)
        with (
            run_service(settings) as service,
            shown_project(service, database) as shown,
            sync_playwright() as playwright,
        ):
            browser = launch(playwright)
            for shot in shots(shown):
                _write(shot, _take(browser, service, shot))
            browser.close()
        database.dispose()
    close_loop()


def _take(browser: Browser, service: Service, shot: Shot) -> bytes:
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
        device_scale_factor=2 if shot.width < 600 else 1,
    )
    page = context.new_page()
    page.goto(f"{service.url}/console/sign-in")
    page.get_by_label("API key").fill(API_KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{service.url}/console")
    page.goto(f"{service.url}/console{shot.path}")
    _settle(page)
    if shot.scroll_to:
        page.locator(shot.scroll_to).evaluate("each => each.scrollIntoView()")
    picture = page.screenshot()
    context.close()
    return picture


def _settle(page: Page) -> None:
    """Wait until the pictures of a job, if any, are drawn."""
    if page.locator("#pictures").count():
        page.locator("#pictures[data-drawn]").wait_for()
    page.wait_for_load_state("load")


def _write(shot: Shot, picture: bytes) -> None:
    """Write the picture with few colours, as flat pages have."""
    path = FOLDER / f"{shot.name}.png"
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size <= MOST_BYTES, f"{path.name} has {size:,} bytes"
    print(f"{os.path.relpath(path)}: {size:,} bytes")


if __name__ == "__main__":
    main()
