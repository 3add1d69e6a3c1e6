"""Signing in and out in a browser."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.console.conftest import Console
from tests.support.browser import follow


def test_who_has_a_key_signs_in_and_out(
    console: Console, stranger: Page, assert_accessible: Callable[[Page], None]
) -> None:
    stranger.goto(console.url)
    assert stranger.url == f"{console.url}/sign-in?next=%2Fconsole"
    assert_accessible(stranger)

    stranger.get_by_label("API key").fill("sk-toque-nobody")
    follow(stranger.get_by_role("button", name="Sign in"))
    expect(stranger.get_by_text("The API key is not valid")).to_be_visible()

    stranger.get_by_label("API key").fill(console.key)
    with stranger.expect_navigation():
        stranger.keyboard.press("Enter")
    expect(stranger.get_by_role("heading", name="Overview")).to_be_visible()
    assert_accessible(stranger)

    follow(stranger.get_by_role("button", name="Sign out"))
    stranger.wait_for_url("**/sign-in")
    stranger.goto(console.url)
    assert "/sign-in" in stranger.url
