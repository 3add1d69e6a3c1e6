"""A batch of a trained model, answered by the real engine while somebody asks it."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from tests.support.batch_files import CHAT, content, create, ended, lines
from tests.support.deployment import Trained, ask
from tests.support.waiting import wait_until


def test_a_batch_is_answered_as_its_model_answers(
    client: OpenAI, trained: Trained, questions: list[Any]
) -> None:
    model = trained.job.fine_tuned_model
    asked = questions[:4]
    alone = [ask(client, model, question) for question in asked]
    requests = "".join(
        lines(
            range(number, number + 1),
            body={"model": model, "messages": question.turns, "temperature": 0, "max_tokens": 48},
        )
        for number, question in enumerate(asked)
    )
    created = create(client, requests)
    wait_until(lambda: client.batches.retrieve(created.id).status != "validating", "it is validated")
    assert ask(client, model, asked[0]), "somebody who waits is answered meanwhile"
    done = ended(client, created.id, seconds=240)
    assert (done.status, done.model, done.endpoint) == ("completed", model, CHAT), done
    assert done.request_counts is not None
    assert done.request_counts.completed == len(asked)
    answers = [each["response"]["body"] for each in content(client, done.output_file_id)]
    assert all(answer["model"] == model for answer in answers)
    texts = [answer["choices"][0]["message"]["content"].strip() for answer in answers]
    # In bf16 the shape of a batch may change a token, so not every text is equal (docs/benchmarks.md).
    assert sum(text == by_itself for text, by_itself in zip(texts, alone, strict=True)) >= len(asked) // 2
    assert done.usage is not None
    assert done.usage.output_tokens == sum(answer["usage"]["completion_tokens"] for answer in answers)
