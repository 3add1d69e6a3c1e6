"""An alias as a state machine: whatever is asked, in whatever order, history and target agree.

The model of it is a stack of targets: a change pushes, unless it changes nothing; a rollback pops.
"""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from app.auth import service as auth_service
from app.auth.caller import Caller
from app.auth.models import ApiKey
from app.context import Context
from app.core.database import Database
from app.core.errors import ConflictError, NotFoundError, ToqueError
from app.core.idempotency import IdempotentRequest
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.models.aliases import service
from app.models.aliases.models import Alias, AliasChange, Share
from app.models.aliases.schemas import PutAlias, RollBackAlias, ShareObject
from app.storage import open_storage

SETTINGS = Settings()
MODELS = [f"ft:{SETTINGS.base_models[0].name}:p:{letter}:1" for letter in "abc"]
TARGETS: list[list[Share]] = [
    *([{"model": model, "weight": 1.0}] for model in MODELS),
    [{"model": MODELS[0], "weight": 9.0}, {"model": MODELS[1], "weight": 1.0}],
]


class AliasMachine(RuleBasedStateMachine):
    """One alias of a new project in each example."""

    database: Database

    @initialize()
    def start(self) -> None:
        with self.database.writer() as session:
            age = len(session.scalars(select(ApiKey.id)).all())
            project = auth_service.create_project(session, f"p{age}")
            key, _ = auth_service.create_key(session, project.id, "machine")
            # Rows of their own, since a served name is unique: the names are the project's.
            self.targets: list[list[Share]] = [
                [{"model": f"{share['model']}{age}", "weight": share["weight"]} for share in target]
                for target in TARGETS
            ]
            for model in MODELS:
                session.add(
                    Adapter(
                        name=f"{model}{age}",
                        project_id=project.id,
                        base_model=SETTINGS.base_models[0].name,
                        storage_key="k",
                    )
                )
        self.context = Context(
            project.id, SETTINGS, open_storage(SETTINGS), Caller(project.id, key.id, "project")
        )
        self.creating = IdempotentRequest(project.id, None, None, lambda: False)
        self.stack: list[list[Share]] = []
        self.version = 0
        self.moves = 0

    def moved(self) -> None:
        self.version += 1
        self.moves += 1

    def seen(self, is_stale: bool) -> int | None:
        """The version that a caller sends; a stale one names another than the present."""
        if is_stale:
            return self.version + 1
        return self.version if self.stack else None

    @rule(number=st.integers(0, len(TARGETS) - 1), is_stale=st.booleans())
    def put(self, number: int, is_stale: bool) -> None:
        split = self.targets[number]
        request = PutAlias(split=[ShareObject(**share) for share in split], version=self.seen(is_stale))
        try:
            with self.database.writer() as session:
                alias = service.put_alias(session, self.context, self.creating, "a", request, lambda *_: None)
        except ConflictError as error:
            assert is_stale and error.body.code == "alias_version_conflict"
            return
        assert not is_stale
        self.moved()
        assert (alias.version, alias.split) == (self.version, split)
        if not self.stack or self.stack[-1] != split:
            self.stack.append(split)

    @rule(is_stale=st.booleans(), has_version=st.booleans())
    def roll_back(self, is_stale: bool, has_version: bool) -> None:
        version = self.seen(is_stale) if has_version else None
        request = RollBackAlias(version=version)
        try:
            with self.database.writer() as session:
                alias = service.roll_back(session, self.context, self.creating, "a", request)
        except NotFoundError:
            assert not self.stack
        except ConflictError as error:
            if error.body.code == "nothing_to_roll_back":
                assert len(self.stack) == 1
            else:
                assert is_stale and has_version and self.stack
        else:
            assert not (is_stale and has_version)
            self.stack.pop()
            self.moved()
            assert (alias.version, alias.split) == (self.version, self.stack[-1])

    @rule(number=st.integers(0, 2))
    def promote(self, number: int) -> None:
        """As `app.models.promotion` does once its rules hold."""
        split = self.targets[number]
        with self.database.writer() as session:
            alias = service.lock_alias(session, self.context, "a", self.seen(False))
            rules = [{"rule": "min_score", "passed": True}]
            service.point(session, self.context, "a", alias, service.Move("promoted", split, rules=rules))
        self.moved()
        if not self.stack or self.stack[-1] != split:
            self.stack.append(split)

    @rule()
    def delete(self) -> None:
        try:
            with self.database.writer() as session:
                service.delete_alias(session, self.context, "a", None)
        except NotFoundError:
            assert not self.stack
        else:
            self.stack.clear()
            self.moved()

    @rule(model=st.integers(0, 2))
    def delete_a_model_in_use(self, model: int) -> None:
        [share] = self.targets[model]
        if not self.stack or share["model"] not in [each["model"] for each in self.stack[-1]]:
            return
        with pytest.raises(ToqueError, match="points to"), self.database.writer() as session:
            service.delete_model(session, self.context, share["model"])

    @invariant()
    def history_and_target_agree(self) -> None:
        if not hasattr(self, "stack"):
            return
        with self.database.reader() as session:
            alias = session.scalar(select(Alias).where(Alias.project_id == self.context.project_id))
            if alias is None:
                assert self.version == 0
                return
            changes = session.scalars(
                select(AliasChange).where(AliasChange.alias_id == alias.id).order_by(AliasChange.version)
            ).all()
            leads_to = service.find_alias(session, self.context, "a")
        assert [change.version for change in changes] == list(range(1, self.moves + 1))
        for before, after in itertools.pairwise(changes):
            assert after.split_before == before.split_after
            assert after.created_at >= before.created_at
        assert changes[0].split_before == []
        assert (alias.version, alias.split) == (self.version, changes[-1].split_after)
        assert alias.split == (self.stack[-1] if self.stack else [])
        assert (leads_to is None) == (not self.stack)
        assert changes[-1].created_at <= time.time()


def test_history_and_target_agree(database_url: str) -> None:
    database = Database(database_url)

    class Machine(AliasMachine):
        pass

    Machine.database = database
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=30, stateful_step_count=30),
    )
    database.dispose()
