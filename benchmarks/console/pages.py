"""The console's pages: how soon their first byte comes, and what they weigh."""

from __future__ import annotations

import gzip
import http.client
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

from benchmarks.console.comparison_rows import ASKED, COMPARISON
from benchmarks.console.rows import ALIAS, LIVE, LONG, Made
from benchmarks.serving.measurements import percentile

_REQUESTS = 60
_WARM_UP = 3


def pages_of(made: Made, file_id: str, deep_line: int) -> dict[str, str]:
    """Returns the paths of the pages by their names."""
    job, model = made.jobs[0], quote(made.model, safe="")
    compared = urlencode([("job", each) for each in made.jobs[:4]])
    comparison = f"/console/comparisons/{COMPARISON}"
    return {
        "overview": "/console",
        "datasets": "/console/datasets",
        "dataset": f"/console/datasets/{file_id}",
        "examples": f"/console/datasets/{file_id}/examples",
        "examples, far down": f"/console/datasets/{file_id}/examples?line={deep_line}",
        "example": f"/console/datasets/{file_id}/lines/7",
        "search in examples": f"/console/datasets/{file_id}/examples?q=croissant",
        "jobs": "/console/jobs",
        "jobs, filtered": "/console/jobs?status=failed&q=team-7",
        "new job": f"/console/jobs/new?training_file={file_id}",
        "job": f"/console/jobs/{job}",
        "job that trains": f"/console/jobs/{LIVE}",
        "job of 100,000 steps": f"/console/jobs/{LONG}",
        "its curves": f"/console/jobs/{LONG}/curves",
        "its figures": f"/console/jobs/{LONG}/figures",
        "jobs overlaid": f"/console/jobs/compare?{compared}",
        "playground": f"/console/playground?model={model}",
        "playground's models": "/console/playground/models?q=team-7",
        "comparisons": "/console/comparisons",
        "new comparison": f"/console/comparisons/new?job={job}",
        "comparison": comparison,
        "comparison, answers": f"{comparison}?a=tuned&b=base",
        "comparison that runs": f"/console/comparisons/{ASKED}",
        "models": "/console/models",
        "models, found by name": "/console/models?q=team-77",
        "model": f"/console/models/{model}",
        "aliases": "/console/aliases",
        "alias": f"/console/aliases/{ALIAS}",
        "promotion": f"/console/aliases/~promote?model={model}",
        "machines": "/console/operations",
        "usage": "/console/operations/usage",
        "keys": "/console/operations/keys",
        "audit log": "/console/operations/audit",
    }


def first_bytes(url: str, cookie: str, pages: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Returns the median and the 95th percentile of each page's milliseconds; pages take turns."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    taken: dict[str, list[float]] = {name: [] for name in pages}
    for number in range(-_WARM_UP, _REQUESTS):
        for name, path in pages.items():
            began = time.perf_counter()
            connection.request("GET", path, headers={"cookie": cookie, "accept-encoding": "gzip"})
            answer = connection.getresponse()
            milliseconds = (time.perf_counter() - began) * 1000
            content = answer.read()
            assert answer.status == 200, (name, answer.status, content[:2000])
            if number >= 0:
                taken[name].append(milliseconds)
    connection.close()
    return {
        name: {f"p{percent}": round(percentile(values, percent), 1) for percent in (50, 95)}
        for name, values in taken.items()
    }


class _Files(HTMLParser):
    """Notes what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[str, None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        path = found.get("src") if tag in ("script", "img") else found.get("href") if tag == "link" else None
        if path:
            self.paths[path] = None


def weights(url: str, cookie: str, pages: Mapping[str, str]) -> dict[str, float]:
    """Returns the KB of each page with its files, as they are sent; what is no page here is left out."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def read(path: str) -> tuple[int, int, str]:
        headers = {"cookie": cookie, "accept-encoding": "gzip"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        is_packed = answer.headers.get("content-encoding") == "gzip"
        text = gzip.decompress(content) if is_packed else content
        return answer.status, len(content), text.decode("utf-8", "replace")

    found: dict[str, float] = {}
    for name, path in pages.items():
        status, size, text = read(path)
        if status != 200 or not text.startswith("<!doctype html>"):
            continue
        parser = _Files()
        parser.feed(text)
        found[name] = round((size + sum(read(each)[1] for each in parser.paths)) / 1000, 1)
    connection.close()
    return found
