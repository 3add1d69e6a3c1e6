"""How long a browser takes from a job's points to the drawn pictures."""

from __future__ import annotations

import statistics

from playwright.sync_api import sync_playwright

from tests.support.chromium import launch

_LOADS = 9
_NOTE_DRAWN = """
new MutationObserver((_, observer) => {
  const pictures = document.querySelector("#pictures[data-drawn]");
  if (!pictures) return;
  observer.disconnect();
  const painted = new MessageChannel();
  painted.port1.onmessage = () => { document.documentElement.dataset.painted = performance.now(); };
  requestAnimationFrame(() => painted.port2.postMessage(null));
}).observe(document, { attributes: true, childList: true, subtree: true });
"""
_TIMES = """() => {
  const [points] = performance.getEntriesByType("resource").filter((each) => each.name.includes("/curves?"));
  const painted = Number(document.documentElement.dataset.painted);
  return [points.responseEnd - points.startTime, painted - points.responseEnd];
}"""


def measure(url: str, cookie: str, path: str) -> dict[str, list[float]]:
    """Returns the median and the most milliseconds in which the points come, and then are drawn.

    They are drawn when the browser has painted the frame that shows them.
    """
    with sync_playwright() as playwright:
        browser = launch(playwright)
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        name, _, value = cookie.partition("=")
        context.add_cookies([{"name": name, "value": value, "url": url}])
        context.add_init_script(_NOTE_DRAWN)
        page = context.new_page()
        times: list[list[float]] = []
        for _ in range(_LOADS):
            page.goto(f"{url}{path}")
            page.wait_for_selector("html[data-painted]", state="attached")
            times.append(page.evaluate(_TIMES))
        browser.close()
    return {
        name: [round(statistics.median(values), 1), round(max(values), 1)]
        for name, values in zip(("fetched", "drawn"), zip(*times, strict=True), strict=True)
    }
