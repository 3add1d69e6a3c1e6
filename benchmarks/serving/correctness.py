"""Does every row of a mixed batch get its own weights, and no others?

The same prompts go to the base model and to eight adapters, first one request at a time (solo), then
shuffled, 16 at once (mixed), with the base model in every third row. The measure of a row is the mean
distance of its log-probabilities from those of transformers and PEFT in fp32: of the prompt's tokens, which
are the same in both, and apart from that of the tokens that it answered.

A base row is contaminated if any adapter's reference is nearer to it than the base model's, or if it is more
than twice as far from the base model's as the same prompt alone. An adapter's row is misplaced if any other
model's reference is nearer.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import app.demo
from benchmarks.serving.deployment import Deployment
from benchmarks.serving.engines import EngineClient
from benchmarks.serving.measurements import progress
from benchmarks.serving.reference import Question, reference_logprobs
from workers.inference.vllm_process import Vllm

CONCURRENCY = 16
PROMPTS = 8
ANSWER_TOKENS = 8
_BASE_REPEATS = 4
_TRAINING_FILE = Path(app.demo.__file__).with_name("training.jsonl")


class Row(NamedTuple):
    """One served answer: the log-probabilities of its tokens from the second on."""

    model: str
    prompt: int
    ids: list[int]
    logprobs: list[float]
    prompt_tokens: int

    def prompt_distance(self, reference: list[float]) -> float:
        return _distance(self.logprobs[: self.prompt_tokens - 1], reference[: self.prompt_tokens - 1])

    def answer_distance(self, reference: list[float]) -> float:
        return _distance(self.logprobs[self.prompt_tokens - 1 :], reference[self.prompt_tokens - 1 :])


def measure(engine: Vllm, deployment: Deployment, adapters: list[str], quick: bool) -> dict[str, Any]:
    base = deployment.base.name
    prompts = _prompts(2 if quick else PROMPTS)
    solo, mixed = asyncio.run(_serve(engine, base, adapters, prompts))
    progress(f"correctness: {len(solo)} solo rows and {len(mixed)} mixed ones served")

    rows = [*solo, *mixed]
    texts = {(row.model, tuple(row.ids)): None for row in rows}
    folders = {name: str(deployment.adapter_folder(name)) for name in adapters} | {base: None}
    question = Question(
        str(deployment.settings.base_model_dir(deployment.base)),
        [(folders[model], list(ids)) for model, ids in texts],
    )
    references = dict(zip(texts, reference_logprobs(question), strict=True))
    # The prompt's tokens are the same in all rows of a prompt, so any of a model's rows has their reference.
    of_prompt = {(row.model, row.prompt): references[row.model, tuple(row.ids)] for row in rows}

    def own(row: Row) -> float:
        return row.prompt_distance(of_prompt[row.model, row.prompt])

    def nearest_other(row: Row) -> float:
        others = {base, *adapters} - {row.model}
        return min(row.prompt_distance(of_prompt[other, row.prompt]) for other in others)

    alone = {row.prompt: own(row) for row in solo if row.model == base}
    base_rows = [row for row in mixed if row.model == base]
    adapter_rows = [row for row in mixed if row.model != base]
    contaminated = [
        row for row in base_rows if nearest_other(row) <= own(row) or own(row) > 2 * alone[row.prompt]
    ]
    misplaced = [row for row in adapter_rows if nearest_other(row) <= own(row)]
    solo_distance, mixed_distance = _mean(map(own, solo)), _mean(map(own, mixed))
    answered = [
        _mean(row.answer_distance(references[row.model, tuple(row.ids)]) for row in each)
        for each in (solo, mixed)
    ]
    return {
        "mixed_logprob_ratio": round(mixed_distance / solo_distance, 4),
        "contaminated": len(contaminated),
        "misplaced": len(misplaced),
        "correctness": {
            "solo_distance": round(solo_distance, 5),
            "mixed_distance": round(mixed_distance, 5),
            "base_solo_distance": round(_mean(alone.values()), 5),
            "base_mixed_distance": round(_mean(map(own, base_rows)), 5),
            "answer_solo_distance": round(answered[0], 5),
            "answer_mixed_distance": round(answered[1], 5),
            "adapters_effect": round(_effect(of_prompt, base, adapters), 5),
            "base_rows": len(base_rows),
            "adapter_rows": len(adapter_rows),
        },
    }


async def _serve(
    engine: Vllm, base: str, adapters: list[str], prompts: list[str]
) -> tuple[list[Row], list[Row]]:
    """Returns the rows that were served alone, and those that were served in mixed batches."""
    asked = [(model, prompt) for model in (base, *adapters) for prompt in range(len(prompts))]
    async with EngineClient.connect(engine) as client:

        async def ask(model: str, prompt: int) -> Row:
            choice = await client.complete(
                model,
                prompts[prompt],
                ANSWER_TOKENS,
                echo=True,
                logprobs=0,
                add_special_tokens=False,
                return_token_ids=True,
            )
            ids = choice["prompt_token_ids"]
            answer = choice["token_ids"]
            logprobs = choice["logprobs"]["token_logprobs"][1:]
            return Row(model, prompt, [*ids, *answer], logprobs, len(ids))

        solo = [await ask(model, prompt) for model, prompt in asked]
        crowd = [*asked, *[(base, prompt) for prompt in range(len(prompts))] * (_BASE_REPEATS - 1)]
        random.Random(16).shuffle(crowd)
        free = asyncio.Semaphore(CONCURRENCY)

        async def ask_when_free(model: str, prompt: int) -> Row:
            async with free:
                return await ask(model, prompt)

        mixed = await asyncio.gather(*(ask_when_free(model, prompt) for model, prompt in crowd))
    return solo, mixed


def _prompts(count: int) -> list[str]:
    """Returns prompts of about 130 tokens each, from the demo's training file."""
    with _TRAINING_FILE.open(encoding="utf-8") as file:
        turns = [
            turn["content"]
            for line in file
            for turn in json.loads(line)["messages"]
            if turn["role"] != "system"
        ]
    return ["\n".join(turns[8 * number : 8 * number + 8]) for number in range(count)]


def _effect(of_prompt: dict[tuple[str, int], list[float]], base: str, adapters: list[str]) -> float:
    """Returns how far the adapters' references are from the base model's."""
    return _mean(
        _distance(reference[:100], of_prompt[base, prompt][:100])
        for (model, prompt), reference in of_prompt.items()
        if model in adapters
    )


def _distance(some: list[float], others: list[float]) -> float:
    return _mean(abs(one - other) for one, other in zip(some, others, strict=True))


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
