"""Prompts scored by the real engine: exactly their log-probabilities, and those that PEFT computes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx2
import openai
import pytest
from msgspec import structs
from openai import OpenAI

from benchmarks.serving.reference import Question, reference_logprobs
from tests.support.deployment import KEY, Deployment, Trained
from tests.support.service import BASE_MODEL

pytest.importorskip("vllm")

CHATML = (
    "<|im_start|>system\nYou are the Larkspoon help desk.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
)
TEXTS = [
    CHATML.format("How long is my Heron covered?", "[Heron/warranty] Covered for 4 years from purchase."),
    CHATML.format("What cleans a Heron?", "Soak the tip of it in vinegar, and wait."),
    "Leek and potato soup needs butter, a little patience, and at the end a spoonful of cream.",
]
_BIAS = 0.05
"""Nats: how far the mean of tokens' log-probabilities may be from exact arithmetic."""
_NOISE = 0.15
"""Nats: how far one token's may be on average. In bfloat16 a logit of 16 to 32 is a multiple of 0.125."""


@pytest.fixture(scope="module")
def tokenizer(base_models_dir: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(base_models_dir / BASE_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture(scope="module")
def models(
    client: OpenAI, deployment: Deployment, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path | None]:
    """The base, the fine-tuned model and its first checkpoint, with the folders that PEFT reads them from."""
    first = min(client.fine_tuning.jobs.checkpoints.list(trained.job.id), key=lambda point: point.step_number)
    found: dict[str, Path | None] = {BASE_MODEL: None}
    for name in (trained.job.fine_tuned_model, first.fine_tuned_model_checkpoint):
        found[name] = tmp_path_factory.mktemp("adapter")
        url = f"{deployment.url}/v1/adapters/{name}/download"
        archive = httpx2.get(url, headers={"authorization": f"Bearer {KEY}"}).raise_for_status()
        with tarfile.open(fileobj=io.BytesIO(archive.content)) as files:
            files.extractall(found[name], filter="data")
    return found


@pytest.fixture
def many(deployment: Deployment) -> Iterator[ThreadPoolExecutor]:
    """Requests that are sent at once, so that they share batches."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def score(client: OpenAI, model: str, prompts: Any, **options: Any) -> list[Any]:
    """The log-probabilities of the prompts' tokens, as the API has them."""
    options = {"echo": True, "logprobs": 0, "max_tokens": 0} | options
    answer = client.completions.create(model=model, prompt=prompts, **options)
    return [choice.logprobs for choice in answer.choices]


def bias(some: list[list[float]], others: list[list[float]]) -> float:
    """The mean difference of two lists of log-probabilities."""
    return abs(fmean(a - b for a, b in pairs(some, others)))


def noise(some: list[list[float]], others: list[list[float]]) -> float:
    """The mean distance of two lists of log-probabilities."""
    return fmean(abs(a - b) for a, b in pairs(some, others))


def pairs(some: list[list[float]], others: list[list[float]]) -> Iterator[tuple[float, float]]:
    for a, b in zip(some, others, strict=True):
        yield from zip(a, b, strict=True)


def test_mixed_models_are_scored_as_peft_scores_them(
    client: OpenAI,
    models: dict[str, Path | None],
    prompts: list[list[int]],
    base_models_dir: Path,
    many: ThreadPoolExecutor,
) -> None:
    """One request for each model and prompt, all at once and beside chats; then each model alone."""
    for prompt in prompts:  # what is in the prefix cache is scored all the same
        client.completions.create(model=BASE_MODEL, prompt=prompt, max_tokens=1)
    asked = [(model, prompt) for prompt in prompts for model in models]
    chat: Any = [{"role": "user", "content": "Name three soups."}]
    chats = [
        many.submit(client.chat.completions.create, model=model, messages=chat, max_tokens=24, temperature=0)
        for model in models
    ]
    scored = list(many.map(lambda each: score(client, each[0], each[1])[0].token_logprobs, asked))
    assert all(future.result().choices[0].message.content for future in chats)
    assert [logprobs[0] for logprobs in scored] == [None] * len(asked)
    mixed = [logprobs[1:] for logprobs in scored]

    texts = [(str(models[model]) if models[model] else None, prompt) for model, prompt in asked]
    question = Question(str(base_models_dir / BASE_MODEL), texts)
    exact, rounded = many.map(reference_logprobs, [question, structs.replace(question, dtype="bfloat16")])
    for at, model in enumerate(models):
        here, right, peft = (scores[at :: len(models)] for scores in (mixed, exact, rounded))
        alone = [each.token_logprobs[1:] for each in score(client, model, prompts)]
        found = {"bias": bias(here, right), "noise": noise(here, right), "beside others": noise(here, alone)}
        print(model, found, "PEFT in bfloat16:", bias(peft, right), noise(peft, right))
        assert found["bias"] <= _BIAS, found
        assert found["noise"] <= 1.5 * noise(peft, right), found
        assert found["beside others"] <= found["noise"], found
    base, tuned, checkpoint = (exact[at :: len(models)] for at in range(3))
    assert min(noise(base, tuned), noise(checkpoint, tuned), noise(base, checkpoint)) > 0.2


def test_a_long_prompt_is_scored_in_chunks(
    client: OpenAI, models: dict[str, Path | None], prompts: list[list[int]], base_models_dir: Path
) -> None:
    """Two prompts of 1,100 tokens are more than a batch of the engine, 2,048 tokens, can hold."""
    _, tuned, _ = models
    long = [(prompts[at] * 50)[:1100] for at in (0, 2)]
    _, second = score(client, tuned, long)
    exact = reference_logprobs(Question(str(base_models_dir / BASE_MODEL), [(str(models[tuned]), long[1])]))
    assert bias([second.token_logprobs[1:]], exact) <= _BIAS
    assert noise([second.token_logprobs[1:]], exact) <= _NOISE


def test_an_echo_is_the_prompt_and_nothing_else(
    client: OpenAI, prompts: list[list[int]], trained: Trained
) -> None:
    request: dict[str, Any] = {
        "model": trained.job.fine_tuned_model,
        "echo": True,
        "logprobs": 2,
        "max_tokens": 0,
    }
    answer = client.completions.create(prompt=prompts[2:], **request)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (TEXTS[2], "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompts[2]), 0)
    assert answer.usage.total_tokens == len(prompts[2])
    found: Any = choice.logprobs
    assert "".join(found.tokens) == TEXTS[2]
    assert [
        TEXTS[2][at:][: len(token)] for at, token in zip(found.text_offset, found.tokens, strict=True)
    ] == (found.tokens)
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    for token, own, top in zip(
        found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True
    ):
        assert top[token] == own <= max(top.values()) < 0
        assert len(top) in (2, 3)

    streamed = client.completions.create(
        prompt=TEXTS[2], stream=True, stream_options={"include_usage": True}, **request
    )
    first, *rest = list(streamed)
    assert first.choices[0].text == TEXTS[2]
    assert first.choices[0].logprobs.token_logprobs == pytest.approx(found.token_logprobs, abs=0.3)  # pyright: ignore
    assert [chunk.choices for chunk in rest] == [[]]
    assert rest[0].usage.completion_tokens == 0  # pyright: ignore[reportOptionalMemberAccess]


def test_prompt_logprobs(client: OpenAI, tokenizer: Any) -> None:
    ids = tokenizer.encode("Leek soup").ids
    answer = client.completions.create(
        model=BASE_MODEL, prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    extra: Any = answer.choices[0].model_extra
    first, *others = extra["prompt_logprobs"]
    assert first is None
    assert [str(token) in each for token, each in zip(ids[1:], others, strict=True)] == [True] * len(others)
    messages: Any = [{"role": "user", "content": "Soup?"}]
    chat: Any = client.chat.completions.create(
        model=BASE_MODEL, messages=messages, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert len(chat.model_extra["prompt_logprobs"]) == chat.usage.prompt_tokens
    plain: Any = client.completions.create(model=BASE_MODEL, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    assert "prompt_logprobs" not in plain.choices[0].model_extra


def test_an_id_that_the_model_does_not_have(client: OpenAI) -> None:
    for prompt in ([49_152], [[1, 2], [2**31 - 1]]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=BASE_MODEL, prompt=prompt, max_tokens=1)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE_MODEL, prompt="a", max_tokens=1, logit_bias={"49152": 1})
    assert caught.value.param == "logit_bias"
    assert client.completions.create(model=BASE_MODEL, prompt=[49_151], max_tokens=1).usage
