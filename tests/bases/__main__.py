"""`python -m tests.bases [FAMILY…] [--page FILE]`: try families of base models; ends with one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.bases.matrix import Result, run
from tests.bases.page import render
from tests.support.tiny_bases import FAMILIES


def main() -> None:
    """Exit with 1 if anything is wrong; with --page, write what was found as a page of the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", choices=[[], *FAMILIES], default=[])
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="toque-bases-") as folder:
        began = time.monotonic()
        for result in run(options.families or FAMILIES, Path(folder)):
            results.append(result)
            print(f"{time.monotonic() - began:6.1f} s  {_line(result)}", file=sys.stderr, flush=True)
    if options.page:
        options.page.write_text(render(results), "utf-8")
    print(
        json.dumps(
            {
                "families": len(results),
                "trained": sum(result.is_trained for result in results),
                "served": sum(result.is_served for result in results),
                "refused_by_name": sum(bool(result.refused) and not result.wrong for result in results),
                "wrong": sum(bool(result.wrong) for result in results),
            }
        )
    )
    sys.exit(any(result.wrong for result in results))


def _line(result: Result) -> str:
    if result.wrong:
        return f"{result.family}: WRONG: {'; '.join(result.wrong)}"
    if result.refused:
        return f"{result.family}: refused by name"
    trained = f"loss {result.loss:.4f}, reference {result.reference_loss:.4f}, effect {result.effect:.2f}"
    return f"{result.family}: trained ({trained}); served, {result.difference:.2g} off"


if __name__ == "__main__":
    main()
