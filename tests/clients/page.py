# ruff: noqa: E501 - a page of Markdown, whose lines are 120 wide
"""docs/clients.md, written from what was found."""

from __future__ import annotations

from collections.abc import Sequence

from tests.clients.environments import pins
from tests.clients.registry import CLIENTS
from tests.clients.results import Attempt, Result

_PAGE = """\
# Clients

Programs written for OpenAI's API reach Toque with another base URL and another key. `make test-clients` proves it: it
installs each client below in an environment of its own, starts one `toque serve` with the demo's base model,
fine-tunes a model that calls functions, and runs the clients' [scripts](../tests/clients/scripts) against it. It wrote
this page.

| client | version | tried | result |
|---|---|---|---|
{rows}

To try them against a service that already runs, see `python -m tests.clients --help`.
{sections}"""


def render(results: Sequence[Result]) -> str:
    """Return the page."""
    return _PAGE.format(
        rows="\n".join(_row(result) for result in results),
        sections="".join(_section(result) for result in results),
    )


def versions(name: str) -> str:
    """Return the packages of a client with their versions."""
    client = CLIENTS[name]
    pinned = pins(client.environment)
    return ", ".join(f"{package} {pinned[package]}" for package in client.packages)


def _row(result: Result) -> str:
    title = CLIENTS[result.client].title
    anchor = "".join(
        letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-"
    )
    limits = [attempt for attempt in result.attempts if attempt.limitation and not attempt.failure]
    found = f"{len(result.failures)} fail" if result.failures else "works"
    if limits:
        found += f"; {len(limits)} not possible"
    return f"| [{title}](#{anchor}) | {versions(result.client)} | {len(result.attempts)} | {found} |"


def _section(result: Result) -> str:
    client = CLIENTS[result.client]
    tried = "\n".join(f"| {attempt.name} | {_found(attempt)} |" for attempt in result.attempts)
    gap = "\n\n" if client.change.startswith("```") else " "
    change = f"What changes:{gap}{client.change}"
    return f"\n## {client.title}\n\n{change}\n\n| tried | result |\n|---|---|\n{tried}\n"


def _found(attempt: Attempt) -> str:
    if attempt.failure:
        return f"fails: {_one_line(attempt.failure)}"
    return f"not possible: {_one_line(attempt.limitation)}" if attempt.limitation else "works"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300].replace("|", "\\|")
