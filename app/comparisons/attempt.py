"""Runs one comparison: asks its questions, records the answers, asks the judges, and grades."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons import few_shot, grading, models, queue
from app.comparisons.chat_client import ChatClient, prompt
from app.comparisons.external import Endpoint
from app.comparisons.graders.registry import parse_grader
from app.comparisons.plan import Plan
from app.comparisons.questions import Question
from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.errors import InvalidRequestError
from app.core.lease import Lease, async_heartbeat
from app.core.lease_runner import LeasedTransactions
from app.core.row_writer import Row, RowWriter
from app.core.threads import entered_in_thread
from app.files.models import File
from app.storage.base import Storage

T = TypeVar("T")
Ask = tuple[int, int]
"""A candidate's place in the plan, and the number of a question."""
AnswerText = tuple[Ask, str, Sequence[dict[str, Any]]]
"""An answer, as graders read it, and its tool calls."""

_RENEW_SECONDS = 1.0
"""The heartbeat's interval; a cancellation is noticed no later than this."""


class Attempt:
    """One attempt at a comparison, which ends with its results or when the lease is lost."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        chat_client: ChatClient,
        comparison: models.Comparison,
        lease: Lease,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._storage = storage
        self._chat_client = chat_client
        self._id = comparison.id
        self._lease = lease
        self._transactions = LeasedTransactions(database, lease)
        self._plan = Plan.model_validate(comparison.plan)
        self._api_keys: Mapping[str, str] = comparison.api_keys or {}
        self._lease_seconds = lease_seconds
        self._questions: list[Question] = []
        self._choices: dict[int, few_shot.Choice] = {}
        self._done = 0

    async def run(self) -> None:
        """Ask what has not been asked yet, and grade the answers.

        Raises:
            LeaseLostError: the comparison was cancelled, or another process has claimed it.
        """
        async with async_heartbeat(_RENEW_SECONDS, self._renew):
            self._questions = await self._transactions.read(self._find_questions)
            await self._choose_examples()
            await self._ask()
            await self._ask_judges()
            results, scores = await self._grade()
            await self._transactions.write(queue.succeed, results, scores)

    def _renew(self) -> None:
        with self._database.writer() as session:
            queue.LEASES.renew(session, self._lease, self._lease_seconds)

    async def _grade(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        try:
            return await run_in_child(
                grading.compute, self._database.url, self._id, seconds=grading.GRADING_SECONDS
            )
        except TimeoutError:
            raise InvalidRequestError(
                f"Grading took longer than {grading.GRADING_SECONDS:g} s: simplify the grader.",
                code="grading_failed",
            ) from None

    async def _choose_examples(self) -> None:
        """Choose the examples that each question is shown, for every candidate that shows some."""
        held_out = self._questions[: self._plan.questions]
        for place, candidate in enumerate(self._plan.candidates):
            if candidate.file and candidate.examples and candidate.selection:
                file = await self._transactions.read(self._find_file, candidate.file)
                async with entered_in_thread(self._content(file)) as path:
                    self._choices[place] = await run_in_child(
                        few_shot.choose_examples,
                        path,
                        held_out,
                        candidate.examples,
                        candidate.seed,
                        candidate.selection,
                    )

    async def _ask(self) -> None:
        """Ask what has no answer yet."""
        answered = await self._transactions.read(self._find_answered)
        self._done = len(answered)
        answers = RowWriter(self._record_answers)

        async def ask(each: Ask) -> None:
            place, number = each
            candidate, question, choice = (
                self._plan.all_candidates[place],
                self._questions[number],
                self._choices.get(place),
            )
            reply = await self._chat_client.ask(
                candidate.model,
                prompt(candidate, question, choice.turns(number) if choice else []),
                endpoint=Endpoint(candidate.base_url, self._api_keys.get(str(place)))
                if candidate.base_url
                else None,
                tools=question.tools,
                parallel_tool_calls=question.parallel_tool_calls,
                max_tokens=self._plan.max_tokens,
                temperature=self._plan.temperature,
                seed=self._plan.seed,
            )
            await answers.add({"candidate": place, "question": number} | msgspec.to_builtins(reply))

        await self._in_flight(self._order(answered), ask)

    def _order(self, answered: set[Ask]) -> list[Ask]:
        """Return what is to be asked: by candidate, with questions that share their examples side by side.

        The first question of every candidate comes before all others, so that the prefix of each prompt is in
        the engine's prefix cache before many concurrent requests share it.
        """
        plan = self._plan
        by_candidate = [
            [(place, number) for number in sorted(range(plan.questions), key=self._shown(place))]
            for place in range(len(plan.candidates))
        ]
        general = range(plan.questions, len(self._questions))
        by_candidate += [[(place, number) for number in general] for place in plan.general_candidates]
        left = [[ask for ask in asks if ask not in answered] for asks in by_candidate]
        return [*(asks[0] for asks in left if asks), *(ask for asks in left for ask in asks[1:])]

    def _shown(self, place: int) -> Callable[[int], Any]:
        """The key by which the questions of a candidate are ordered."""
        choice = self._choices.get(place)
        return lambda number: choice.shown[number] if choice else number

    async def _ask_judges(self) -> None:
        """Ask the judges about answers that they have not judged yet."""
        plan = self._plan
        held_out, general = (parse_grader(document) for document in (plan.grader, plan.general_grader))
        if not held_out.has_judges and not general.has_judges:
            return
        answers, judged = (
            await self._transactions.read(self._find_texts),
            await self._transactions.read(self._find_judged),
        )
        judgements = RowWriter(lambda rows: self._transactions.write(queue.record_judgements, rows))

        async def ask(answer: AnswerText) -> None:
            (place, number), text, calls = answer
            grader = held_out if number < plan.questions else general
            # Made when their turn comes, since all of them at once may be many times larger than the file.
            requests = await asyncio.to_thread(grader.judge_requests, self._questions[number], text, calls)
            for turn, request in enumerate(requests):
                if (place, number, turn) in judged:
                    continue
                reply = await self._chat_client.ask(request.model, request.messages, **request.fields)
                judgement: Row = msgspec.to_builtins(reply)
                del judgement["tool_calls"]  # a judge has no tools
                await judgements.add({"candidate": place, "question": number, "turn": turn} | judgement)

        await self._in_flight(answers, ask)

    async def _in_flight(self, asks: Iterable[T], ask: Callable[[T], Awaitable[None]]) -> None:
        """Ask all, as many at once as the plan says."""
        waiting = iter(asks)

        async def ask_in_turn() -> None:
            for each in waiting:
                await ask(each)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.concurrency):
                tasks.create_task(ask_in_turn())

    async def _record_answers(self, rows: list[Row]) -> None:
        await self._transactions.write(queue.record_answers, rows, self._done + len(rows))
        self._done += len(rows)

    def _find_questions(self, session: Session) -> list[Question]:
        contents = select(models.Question.content).where(models.Question.comparison_id == self._id)
        rows = session.scalars(contents.order_by(models.Question.number))
        return [msgspec.convert(content, Question) for content in rows]

    def _find_file(self, session: Session, file_id: str) -> File:
        return session.get_one(File, file_id)

    @contextmanager
    def _content(self, file: File) -> Generator[Path]:
        if not self._storage.exists(file.storage_key):
            raise InvalidRequestError(
                f"The storage has the examples of '{file.id}' no more.", code="file_not_found"
            )
        with self._storage.local(file.storage_key) as path:
            yield path

    def _find_answered(self, session: Session) -> set[Ask]:
        answered = select(models.Answer.candidate, models.Answer.question)
        rows = session.execute(answered.where(models.Answer.comparison_id == self._id))
        return {(place, number) for place, number in rows}

    def _find_texts(self, session: Session) -> Sequence[AnswerText]:
        answer = models.Answer
        texts = select(answer.candidate, answer.question, answer.text, answer.tool_calls).where(
            answer.comparison_id == self._id, answer.text.is_not(None)
        )
        rows = session.execute(texts.order_by(answer.candidate, answer.question))
        return [((place, number), text or "", calls or ()) for place, number, text, calls in rows]

    def _find_judged(self, session: Session) -> set[tuple[int, int, int]]:
        judgement = models.Judgement
        judged = select(judgement.candidate, judgement.question, judgement.turn)
        rows = session.execute(judged.where(judgement.comparison_id == self._id))
        return {(place, number, turn) for place, number, turn in rows}
