"""Which replica a request goes to, among many."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from itertools import count

import pytest
from pydantic import SecretStr

from app.completions.placement import Placement
from app.completions.replica import Replica
from app.core.settings import EngineAddress

ADDRESS = EngineAddress(base_model="base", url="unix:/nowhere", api_key=SecretStr(""))


def replicas(many: int) -> list[Replica]:
    return [Replica(f"engine_{number}", ADDRESS, 1.0, is_ours=True) for number in range(many)]


def placed(among: list[Replica]) -> Placement:
    placement = Placement()
    placement.update(among)
    return placement


def chosen(placement: Placement, key: str, *exclude: Replica) -> str:
    replica = placement.choose(key, exclude)
    assert replica is not None
    return replica.id


KEYS = [f"ft:base:project::{number}" for number in range(400)]


def test_gateways_agree_whatever_the_order_in_which_they_learnt_of_replicas() -> None:
    ten = replicas(10)
    one, other = placed(ten), placed(ten[::-1])
    homes = [chosen(one, key) for key in KEYS]
    assert homes == [chosen(other, key) for key in KEYS]
    assert all(25 <= homes_there <= 60 for homes_there in Counter(homes).values())
    assert homes[:4] == ["engine_9", "engine_1", "engine_6", "engine_6"]  # in every version and process


def test_a_replica_that_goes_moves_only_its_own_keys() -> None:
    ten = replicas(10)
    before, after = placed(ten), placed(ten[1:])
    moved = [key for key in KEYS if chosen(before, key) != chosen(after, key)]
    assert moved == [key for key in KEYS if chosen(placed(ten), key) == "engine_0"]


def test_a_second_attempt_goes_elsewhere_and_a_third_of_two_nowhere() -> None:
    two = replicas(2)
    placement = placed(two)
    first = placement.choose("key")
    assert first is not None
    second = placement.choose("key", [first])
    assert {first, second} == set(two)
    assert placement.choose("key", two) is None
    assert placed([]).choose("key") is None


@pytest.mark.parametrize("many", [2, 3, 8, 50])
def test_no_replica_has_more_than_its_bounded_share(many: int) -> None:
    placement = placed(replicas(many))
    with ExitStack() as stack:
        for number in range(20 * many):
            replica = placement.choose("rare" if number % 2 else f"key {number % 7}")
            assert replica is not None
            stack.enter_context(placement.serving(replica))
        loads = [replica.in_flight for replica in placement.replicas]
        assert sum(loads) == 20 * many
        assert max(loads) <= 20 * (2 - 3 / many**2) + 1
    assert [replica.in_flight for replica in placement.replicas] == [0] * many


def test_what_engines_report_of_other_gateways_counts_as_far_as_it_is_still_true(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eight = replicas(8)
    placement = placed(eight)
    home = placement.choose("key")
    assert home is not None
    home.take_report(1.0, 20, ())
    placement.update(eight)
    assert chosen(placement, "key") == home.id  # as far as is known, requests take no time
    clock = count(0.0, 60.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for _ in range(100):
        with placement.serving(eight[0]):
            pass
    placement.update(eight)
    second = chosen(placement, "key")
    assert second != home.id
    holder = next(replica for replica in eight if replica.id not in (home.id, second))
    holder.take_report(1.0, 1, {"key"})
    placement.update(eight)
    assert chosen(placement, "key") == holder.id
    home.take_report(1.0, 0, ())  # the same report, read again
    assert home.in_flight_elsewhere == 20
    home.take_report(2.0, 0, ())
    placement.update(eight)
    assert chosen(placement, "key") == home.id


def test_a_popular_adapter_has_several_homes_and_a_rare_one_keeps_its_own() -> None:
    randomly = random.Random(1)
    placement = placed(replicas(8))
    in_flight = ExitStack()
    homes: dict[str, Counter[str]] = {"popular": Counter(), "rare": Counter()}
    for number in range(4000):
        key = "popular" if randomly.random() < 0.3 else "rare" if number % 100 == 0 else f"key {number % 150}"
        replica = placement.choose(key)
        assert replica is not None
        if number > 2000 and key in homes:
            homes[key][replica.id] += 1
        in_flight.enter_context(placement.serving(replica))
        if number % 40 == 0:
            in_flight.close()
    assert len(homes["popular"]) == 8
    assert max(homes["popular"].values()) < 2 * homes["popular"].total() / 8
    assert homes["rare"].most_common(1)[0][1] >= 0.7 * homes["rare"].total()
