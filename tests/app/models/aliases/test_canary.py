"""Splits: each model gets its share, each user stays with one model, and a bad model takes nobody with it."""

from __future__ import annotations

import secrets
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.settings import BaseModelEntry
from app.models.adapters.served_models import ServedModel
from app.models.aliases.target import Target, WeightedModel


def target(**weights: float) -> Target:
    base = BaseModelEntry(name="base", source="owner/base")
    models = (
        WeightedModel(ServedModel(name, base, is_base=False), weight) for name, weight in weights.items()
    )
    return Target("house-style:production", tuple(models))


USERS = [f"user-{number}" for number in range(20_000)]


def by_user(split: Target) -> dict[str, str]:
    return {user: split.model_for(user).name for user in USERS}


@pytest.mark.parametrize(
    "weights", [{"old": 95.0, "new": 5.0}, {"old": 1.0, "new": 1.0, "third": 2.0}, {"old": 1e6, "new": 1e-3}]
)
@pytest.mark.parametrize("has_user", [True, False])
def test_each_model_gets_its_share(weights: dict[str, float], has_user: bool) -> None:
    split = target(**weights)
    counts = Counter(split.model_for(user if has_user else None).name for user in USERS)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        # Five standard deviations, and one request.
        tolerance = 5 * (share * (1 - share) / len(USERS)) ** 0.5 + 1 / len(USERS)
        assert abs(counts[name] / len(USERS) - share) <= tolerance


def test_a_user_stays_with_one_model() -> None:
    first = by_user(target(old=90.0, new=10.0))
    assert by_user(target(old=90.0, new=10.0)) == first
    assert by_user(target(new=1.0, old=9.0)) == first, "neither order nor scale of the weights matters"
    assert set(first.values()) == {"old", "new"}


def test_a_canary_that_grows_keeps_its_users() -> None:
    small, large = by_user(target(old=95.0, new=5.0)), by_user(target(old=70.0, new=30.0))
    assert all(large[user] == "new" for user in USERS if small[user] == "new")
    assert 0 < Counter(small.values())["new"] < Counter(large.values())["new"]


def test_a_model_that_leaves_moves_its_users_only() -> None:
    before, after = by_user(target(a=1.0, b=1.0, c=1.0)), by_user(target(a=1.0, b=1.0))
    assert {user for user in USERS if before[user] != after[user]} == {
        user for user in USERS if before[user] == "c"
    }


def test_another_alias_draws_anew() -> None:
    split = target(old=1.0, new=1.0)
    other = Target("another", split.models)
    agree = sum(split.model_for(user) == other.model_for(user) for user in USERS)
    assert abs(agree / len(USERS) - 0.5) < 0.02


def test_without_a_user_each_request_draws_its_own_lot() -> None:
    split = target(old=1.0, new=1.0)
    assert {split.model_for(nobody).name for nobody in [None, ""] * 100} == {"old", "new"}


@given(st.text(), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=16))
def test_any_user_gets_a_model(user: str, weights: list[float]) -> None:
    split = target(**{f"m{number}": weight for number, weight in enumerate(weights)})
    assert split.model_for(user or secrets.token_hex(4)) in [each.model for each in split.models]


def test_half_a_character_is_a_user_too() -> None:
    assert target(old=1.0, new=1.0).model_for("\ud800") is not None
