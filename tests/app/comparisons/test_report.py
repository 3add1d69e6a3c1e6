"""The report: everything is on the page, nothing that a model says becomes markup, and nothing is loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.comparisons.analysis.answers import (
    Answer,
    CandidateAnswers,
    ComparisonAnswers,
    GeneralAnswers,
)
from app.comparisons.analysis.summary import compute_results
from app.comparisons.plan import Candidate
from app.comparisons.report.html_page import render_html
from app.comparisons.report.markdown import render_markdown
from app.comparisons.report.model_names import short_names

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>' \" {{ 7*7 }} {% raw %}"
OUTSIDE = {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"}
SIZE = 40


class Page(HTMLParser):
    """Which elements and attributes a page has, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def compared(says: str = "wrong", name: str = "tuned") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A comparison whose fine-tuned model is right but on two questions, as the API shows it."""
    right = {"base": 5, "early": 20, name: SIZE - 2}
    of = [
        CandidateAnswers(
            Candidate(
                name=who,
                type="base" if who == "base" else "model",
                model="b" if who == "base" else who if who.startswith("ft:") else f"ft:{who}",
                **facts,
            ),
            [
                Answer("right", 1.0, None, 30, 5, 0.4)
                if place < count
                else Answer(says, 0.0, None, 30, 9, 0.6)
                for place in (range(SIZE) if who != "base" else reversed(range(SIZE)))
            ],
        )
        for (who, count), facts in zip(
            right.items(),
            [{}, {"job": "ftjob-1", "step": 10}, {"job": "ftjob-1", "step": 20, "is_final": True}],
            strict=True,
        )
    ]
    general = GeneralAnswers([Answer("x", 1.0)] * 30, {name: [Answer("x", 1.0)] * 30})
    slices = [{"topic": f"topic {place % 2}"} for place in range(SIZE)]
    results = compute_results(ComparisonAnswers(of, slices=slices, general=general)).model_dump(mode="json")
    comparison = {
        "id": "cmp-1",
        "name": None,
        "status": "succeeded",
        "model": "b",
        "file": "file-1",
        "excluded": {"count": 3, "lines": []},
        "max_regression": 0.05,
        "finished_at": 1_795_000_000,
        "error": None,
        "results": results,
        "verdict": results["verdict"],
    }
    items = [
        {
            "file": "file-1",
            "line": place + 1,
            "messages": [{"role": "user", "content": f"Question {place}? {says}"}],
            "reference": "right",
            "metadata": slices[place],
            "answers": [
                {
                    "candidate": part.candidate.name,
                    "text": part.answers[place].text,
                    "score": part.answers[place].score,
                    "error": None,
                }
                for part in of
            ],
        }
        for place in range(SIZE)
    ]
    return comparison, items


def test_the_page_shows_everything() -> None:
    comparison, items = compared()
    html = render_html(comparison, items)
    page = Page(html)
    assert comparison["verdict"]["sentence"] in page.text
    assert comparison["verdict"]["code"] == "fine_tuning_wins"
    for words in (
        "95.0 %",
        "Pairs",
        "Checkpoints of ftjob-1",
        "General questions",
        "topic 1",
        "Answers side by side",
    ):
        assert words in page.text, words
    assert page.tags.count("svg") == 2
    assert page.tags.count("rect") == 3
    assert page.tags.count("circle") == 2
    lost = html[html.index("Where fine-tuning lost most") : html.index("Answers side by side")]
    assert lost.count("<details") == 2
    assert "Question 38?" in lost
    assert page.tags.count("details") == 2 + SIZE
    assert "3 questions left out" in page.text
    assert "2026-11-18" in page.text


def general_item(place: int, tuned: str, score: float | None, error: str | None = None) -> dict[str, Any]:
    """A general question that the base answered right."""
    answers = [("b", "Paris", 1.0, None), ("tuned", tuned, score, error), ("early", "Rome", 0.0, None)]
    return {
        "file": "file-2",
        "line": place,
        "messages": [{"role": "user", "content": f"General {place}?"}],
        "reference": "Paris",
        "metadata": {},
        "answers": [
            {"candidate": who, "text": None if why else text, "score": points, "error": why}
            for who, text, points, why in answers
        ],
    }


def test_general_questions_that_were_lost_are_shown_the_worst_first() -> None:
    comparison, items = compared()
    comparison["regression_file"] = "file-2"
    general = [
        general_item(1, "Paris", 1.0),
        general_item(2, "Par|is?", 0.4),
        general_item(3, "", None, "too long"),
    ]
    html = render_html(comparison, items + general)
    lost = html[html.index("General questions that were lost") : html.index("Slices")]
    assert lost.count("<details") == 2
    assert lost.index("General 3?") < lost.index("General 2?")
    for words in ("Par|is?", "40.0 %", "\u2212100.0", "too long", "failed"):
        assert words in lost, words
    assert "Rome" not in lost, "that is another candidate's answer"
    assert "General 2?" not in html[html.index("Where fine-tuning lost most") :]

    lines = render_markdown(comparison, items + general).splitlines()
    place = lines.index("Where tuned lost most on general questions:")
    assert lines[place + 4 : place + 6] == [
        "| General 3? | Paris | 100.0 % | too long | failed |",
        "| General 2? | Paris | 100.0 % | Par\\|is? | 40.0 % |",
    ]
    assert "lost most on general questions" not in render_markdown(comparison, items + general[:1])


def test_nothing_lost_is_said_in_a_line() -> None:
    comparison, items = compared()
    comparison["regression_file"] = "file-2"
    page = Page(render_html(comparison, [*items[:5], general_item(1, "Paris", 1.0)])).text
    assert "tuned answered no held-out question worse than base." in page
    assert "tuned answered no general question worse than its base." in page
    assert "5.0 points are allowed" in page


def test_without_general_questions_there_is_no_section_for_them() -> None:
    comparison, items = compared()
    comparison["results"]["regression"] = []
    assert "General questions" not in Page(render_html(comparison, items)).text


def test_a_fine_tuned_model_goes_by_its_suffix_and_shows_its_name_on_hover() -> None:
    name = "ft:smollm2-135m-instruct:default:house-style-of-the-bistro:7Kd93hWqPzXc"
    page = render_html(*compared(name=name))
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) == 4
    for table in tables:
        assert f'<span title="{name}">house-style-of-the-bistro</span>' in table
        assert name not in Page(table).text
    assert ">house-style-of-the-bistro</text>" in page
    assert name in Page(page).text, "the verdict names the model in full"


def test_short_names_differ_where_names_do() -> None:
    first, second = "ft:base:default:style:1", "ft:base:default:style:2"
    assert short_names([first]) == {first: "style"}
    assert short_names([first, second, first]) == {first: "style:1", second: "style:2"}
    bare, step = "ft:base:default::3", "ft:base:default:style:1:ckpt-step-20"
    assert short_names([bare, step, "base", "tuned"]) == {
        bare: "3",
        step: "style, step 20",
        "base": "base",
        "tuned": "tuned",
    }
    assert short_names([first, "style"]) == {first: "style:1", "style": "style"}
    other = "ft:base:elsewhere:style:1"
    assert short_names([first, other]) == {first: first, other: other}
    assert short_names(["ft:odd", "ft:a:b:c:d:e:f"]) == {
        "ft:odd": "ft:odd",
        "ft:a:b:c:d:e:f": "ft:a:b:c:d:e:f",
    }


def test_the_page_loads_nothing() -> None:
    page = Page(render_html(*compared()))
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(page.tags)
    assert not OUTSIDE & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|https?:", render_html(*compared()))
    policy = dict(page.attributes).get("content") or ""
    assert any(
        "default-src 'none'" in (value or "") for name, value in page.attributes if name == "content"
    ), policy


def test_hostile_answers_do_not_become_markup() -> None:
    kind = Page(render_html(*compared()))
    hostile = Page(render_html(*compared(HOSTILE, name=HOSTILE)))
    assert set(hostile.tags) == set(kind.tags)
    assert {name for name, _ in hostile.attributes} == {name for name, _ in kind.attributes}
    assert HOSTILE in hostile.text
    assert "49" not in re.findall(r"[{] .*? [}]", hostile.text)


def test_control_characters_are_seen() -> None:
    comparison, items = compared("\x08\x1b[2J\x9b", name="soup\x1b")
    page, text = render_html(comparison, items), render_markdown(comparison)
    assert "␈␛[2J\ufffd" in page
    assert "soup␛" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page + text)


@settings(max_examples=15)
@given(st.text(min_size=1, max_size=30))
def test_whatever_is_said_the_page_has_the_same_elements(says: str) -> None:
    comparison, items = compared()
    expected = Page(render_html(comparison, items[-1:])).tags
    items[-1]["answers"][0]["text"] = items[-1]["reference"] = says
    items[-1]["messages"] = [{"role": "user", "content": says}]
    assert Page(render_html(comparison, items[-1:])).tags == expected


def test_a_long_comparison_says_what_is_left_out() -> None:
    comparison, items = compared()
    page = Page(render_html(comparison, items * 13))
    assert "20 more questions are not shown here" in page.text


@pytest.mark.parametrize("status", ["queued", "running", "cancelled", "failed"])
def test_a_comparison_without_results_says_how_it_stands(status: str) -> None:
    comparison = {
        **compared()[0],
        "status": status,
        "results": None,
        "verdict": None,
        "error": {"code": "x", "message": "because <b>", "param": None} if status == "failed" else None,
    }
    assert f"This comparison is {status}" in Page(render_html(comparison, [])).text
    assert render_markdown(comparison) == f"### Comparison cmp-1 is {status}\n"


def test_markdown_has_the_verdict_and_the_tables() -> None:
    text = render_markdown(compared()[0])
    lines = text.splitlines()
    assert lines[0] == "### Fine-tuning wins"
    assert "| **tuned** | 95.0 % | 83.5 % to 98.6 % | 0 | 35,200 | 0.40 s | 0.41 s |" in lines
    assert "| tuned : base | 35 | 3 | 2 | +82.5 | +61.7 to +95.4 | < 0.001 |" in lines
    assert any(
        line.startswith("General questions: tuned 100.0 %, its base 100.0 %, a difference of +0.0")
        for line in lines
    )
    assert lines[-1] == (
        "40 held-out questions; 3 more were left out, since training files have them, too. "
        "Comparison cmp-1, base model b."
    )


def test_hostile_names_stay_text_in_markdown() -> None:
    name = "a|b\n# `x` <img src=x> @everyone [y](https://evil.example) *bold*"
    text = render_markdown(compared(name=name)[0])
    assert "<img" not in text
    assert "@" not in text
    assert "://" not in text
    assert "\n#" not in text.removeprefix("###")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "img" in line]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
