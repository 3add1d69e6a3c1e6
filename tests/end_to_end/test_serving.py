"""The real engine, spoken to without the API: adapters of random weights, whole and damaged ones."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.completions.models import Engine as EngineRow
from app.completions.vllm_client import VllmConnection
from app.core.database import Database
from app.core.settings import Settings
from app.datasets.formats import parse_line
from app.datasets.types import ChatExample
from app.demo.kitchen.calls import KITCHEN
from app.models.adapters.models import Adapter
from app.models.catalogue import chat_template
from tests.support.deployment import Deployment
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

pytest.importorskip("vllm")
torch = pytest.importorskip("torch")

START_SECONDS = 240
ADAPTERS = {"ft:one": (8, 1), "ft:two": (16, 2), "ft:three": (32, 3)}
"""Rank and seed."""
PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital",
    "<|im_start|>user\nName a soup.<|im_end|>\n<|im_start|>assistant\nLeek and potato, with a little cream.",
]


def make_adapter(base: Path, folder: Path, rank: int, seed: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear"))
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.03)
    peft.save_pretrained(folder)


def peft_logprobs(base: Path, folder: Path | None) -> list[list[float]]:
    """Log-probabilities of each prompt's own tokens by transformers and PEFT: what training sees."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if folder:
        model = PeftModel.from_pretrained(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    found: list[list[float]] = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0].float(), -1)
        found.append([float(scores[at, token]) for at, token in enumerate(ids[0, 1:])])
    return found


@dataclass(frozen=True)
class Serving:
    settings: Settings
    database: Database
    deployment: Deployment
    base: Path

    def row(self) -> EngineRow:
        def ready() -> EngineRow | None:
            assert self.deployment.process.poll() is None
            with self.database.reader() as session:
                return session.scalar(select(EngineRow).where(EngineRow.status == "ready"))

        row: EngineRow = wait_until(ready, "the engine is ready", START_SECONDS)
        return row

    async def post(self, *bodies: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """All at once, so that they share batches."""
        row = self.row()
        connector = aiohttp.UnixConnector(row.url.removeprefix("unix:"), limit=0)
        headers = {"authorization": f"Bearer {row.api_key}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as client:

            async def one(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                async with client.post("http://engine/v1/completions", json=body) as answer:
                    return answer.status, json.loads(await answer.read())

            return await asyncio.gather(*map(one, bodies))

    async def prompt_logprobs(
        self, *asked: tuple[str, str], priorities: Sequence[int] = ()
    ) -> list[list[float]]:
        """Of each model and prompt, all at once; those with the priority 1 are of a batch."""
        common = {"max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0, "add_special_tokens": False}
        ranked = zip(asked, priorities or [0] * len(asked), strict=True)
        answers = await self.post(
            *({"model": m, "prompt": p, "priority": priority} | common for (m, p), priority in ranked)
        )
        return [answer["choices"][0]["logprobs"]["token_logprobs"][1:-1] for _, answer in answers]

    def publish(self, name: str) -> Path:
        with self.database.writer() as session:
            keys = {"project_id": "proj_t", "job_id": "ftjob-t", "base_model": BASE_MODEL}
            session.add(Adapter(name=name, storage_key=name, **keys))
        return self.settings.storage_root / name

    def quarantine_reason(self, name: str) -> str | None:
        with self.database.reader() as session:
            return session.get_one(Adapter, name).quarantine_reason


@pytest.fixture(scope="module")
def serving(deployment: Deployment, base_models_dir: Path) -> Iterator[Serving]:
    settings = Settings(data_dir=Path(deployment.environment["TOQUE_DATA_DIR"]), models_dir=base_models_dir)
    database = Database(settings.sqlalchemy_url)
    serving = Serving(settings, database, deployment, base_models_dir / BASE_MODEL)
    with database.writer() as session:
        add_job(session)
    for name, (rank, seed) in ADAPTERS.items():
        make_adapter(serving.base, serving.publish(name), rank, seed)
    yield serving
    database.dispose()


def assert_near(served: list[float], trained: list[float]) -> None:
    # Both compute in bf16, in another order: single tokens differ, but neither is biased.
    assert len(served) == len(trained)
    differences = [a - b for a, b in zip(served, trained, strict=True)]
    assert max(map(abs, differences)) < 0.35, differences
    assert abs(sum(differences) / len(differences)) < 0.08, differences


async def test_what_is_served_is_what_was_trained(serving: Serving) -> None:
    names = [BASE_MODEL, *ADAPTERS]
    served = await serving.prompt_logprobs(*[(name, prompt) for name in names for prompt in PROMPTS])
    folders = [None, *(serving.settings.storage_root / name for name in ADAPTERS)]
    trained = [scores for folder in folders for scores in peft_logprobs(serving.base, folder)]
    for here, there in zip(served, trained, strict=True):
        assert_near(here, there)


async def test_conversations_with_tools_are_read_as_in_training(serving: Serving, client: OpenAI) -> None:
    template = chat_template(serving.settings, serving.settings.base_models[0])
    assert template is not None
    row = serving.row()
    connection = VllmConnection(row.url, row.api_key, 60)
    for line in KITCHEN.training_file.read_bytes().splitlines()[:5]:
        chat, sent = parse_line(line), json.loads(line)
        assert isinstance(chat, ChatExample)
        [trained] = template.tokenize(chat)
        asked = {"model": BASE_MODEL, "messages": sent["messages"][:-1], "tools": sent["tools"]}
        answer = await connection.post("/tokenize", json.dumps(asked).encode())
        tokens: list[int] = json.loads(await connection.read_all(answer))["tokens"]
        assert tokens == trained.input_ids[: len(tokens)]
        assert trained.target_mask[len(tokens) - 1 : len(tokens) + 1] == [False, True]
        said = client.chat.completions.create(**asked, max_tokens=1)
        assert said.usage is not None and said.usage.prompt_tokens == len(tokens)
    await connection.close()


async def test_base_answers_are_the_same_beside_adapters(serving: Serving) -> None:
    alone = await serving.prompt_logprobs(*[(BASE_MODEL, prompt) for prompt in PROMPTS])
    asked = [(name, prompt) for prompt in PROMPTS for name in ["ft:one", BASE_MODEL, "ft:two", "ft:three"]]
    mixed = await serving.prompt_logprobs(*asked)
    beside = [scores for (name, _), scores in zip(asked, mixed, strict=True) if name == BASE_MODEL]
    for before, after in zip(alone, beside, strict=True):
        assert_near(after, before)


async def test_bad_adapters_are_quarantined_and_harm_nobody(serving: Serving) -> None:
    from safetensors.torch import load_file, save_file

    good = serving.settings.storage_root / "ft:one"
    corrupt, nan, gone = (serving.publish(f"ft:{kind}") for kind in ("corrupt", "nan", "gone"))
    for folder in (corrupt, nan):
        shutil.copytree(good, folder)
    (corrupt / "adapter_model.safetensors").write_bytes(b"\xff" * 1000)
    weights = load_file(nan / "adapter_model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()}, nan / "adapter_model.safetensors"
    )
    good_ones = [(BASE_MODEL, PROMPTS[0]), ("ft:one", PROMPTS[0])]
    before = await serving.prompt_logprobs(*good_ones)

    def greeting(name: str) -> dict[str, Any]:
        return {"model": name, "prompt": "Hello", "max_tokens": 4}

    for folder, says in ((corrupt, "has no header"), (nan, "not numbers")):
        for _ in range(2):
            beside = [greeting(name) for name in (BASE_MODEL, folder.name, "ft:one", folder.name)]
            answers = await serving.post(*beside)
            assert [status for status, _ in answers] == [200, 400, 200, 400]
            for _, refusal in answers[1::2]:
                assert f"The model {folder.name} cannot be served" in refusal["error"]["message"]
                assert says in refusal["error"]["message"]
        assert says in (serving.quarantine_reason(folder.name) or "")
    for name in (gone.name, "ft:unheard-of"):  # its files may come back: that is no verdict
        ((status, _),) = await serving.post(greeting(name))
        assert status == 404
    assert serving.quarantine_reason(gone.name) is None
    shutil.copytree(good, gone)
    ((status, _),) = await serving.post(greeting(gone.name))
    assert status == 200
    after = await serving.prompt_logprobs(*good_ones)
    assert_near(after[0], before[0])
    assert_near(after[1], before[1])


async def test_what_only_vllm_finds_bad_is_quarantined_and_harms_nobody(serving: Serving) -> None:
    make_adapter(serving.base, serving.publish("ft:wide"), 64, 4)
    good_ones = [(BASE_MODEL, PROMPTS[0]), ("ft:one", PROMPTS[0])]
    before = await serving.prompt_logprobs(*good_ones)
    names = (BASE_MODEL, "ft:wide", "ft:one", "ft:wide")
    answers = await serving.post(*({"model": name, "prompt": "Hello", "max_tokens": 4} for name in names))
    assert [status for status, _ in answers] == [200, 400, 200, 400]
    reason = serving.quarantine_reason("ft:wide") or ""
    assert reason == "vLLM cannot load it: LoRA rank 64 is greater than max_lora_rank 32."
    ((status, refusal),) = await serving.post({"model": "ft:wide", "prompt": "Hello", "max_tokens": 4})
    assert (status, reason in refusal["error"]["message"]) == (400, True)
    after = await serving.prompt_logprobs(*good_ones)
    for served, served_before in zip(after, before, strict=True):
        assert_near(served, served_before)


async def test_what_is_in_memory(serving: Serving) -> None:
    row = serving.row()
    await serving.post(*({"model": name, "prompt": "Hello", "max_tokens": 1} for name in ADAPTERS))
    connection = VllmConnection(row.url, row.api_key, 10)
    resident = await connection.adapters()
    await connection.close()
    assert set(ADAPTERS) <= set(resident), "also those that have no slot"
    assert not {"ft:corrupt", "ft:nan", "ft:wide"} & set(resident)


async def test_only_what_the_gateway_needs_answers(serving: Serving) -> None:
    row = serving.row()
    connector = aiohttp.UnixConnector(row.url.removeprefix("unix:"))
    async with aiohttp.ClientSession(connector=connector) as client:
        body = {"model": BASE_MODEL, "prompt": "Hello", "max_tokens": 1}
        for path, status in {
            "/v1/completions": 401,
            "/invocations": 404,
            "/v1/load_lora_adapter": 404,
            "/sleep": 404,
            "/toque/load": 404,
        }.items():
            async with client.post(f"http://engine{path}", json=body) as answer:
                assert answer.status == status, path


async def test_a_batch_beside_others_is_scored_as_alone(serving: Serving) -> None:
    asked = [(name, prompt) for prompt in PROMPTS for name in [BASE_MODEL, *ADAPTERS]]
    alone = await serving.prompt_logprobs(*asked)
    mixed = await serving.prompt_logprobs(*asked, *asked, priorities=[1] * len(asked) + [0] * len(asked))
    for before, after in zip([*alone, *alone], mixed, strict=True):
        assert_near(after, before)
