"""Which replica of a base model a request goes to.

Each adapter has a home among the replicas, by rendezvous hashing (`app.completions.rendezvous`). All gateways
find the same home without a word, so that an adapter is loaded where it was loaded before. A replica with
more than its share of the requests gets no more of them while others have less. A key that is asked for a lot
has several homes, as many as its share of the requests deserves, and goes to the idlest of them: popular keys
then even out the load, and rare ones can stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.completions.popularity import Popularity
from app.completions.replica import Replica

if TYPE_CHECKING:
    from app.completions.rendezvous import Rendezvous

_HOMES_PER_REPLICA = 4.5
"""A key with all requests of one replica's fair share has this many homes. Fewer even out the load less well,
more of them hold the same adapters. Simulated with eight replicas and 200 adapters, 3 to 6 homes: 137 to 152
adapters are loaded in 1,000 requests, and the busiest replica has 1.35 to 1.14 times the mean load."""
_REPORT_SECONDS = 2.0
"""The age of a report on average, in which many of the short requests that it counts have ended."""
_WINDOW_PER_REPLICA, _SMALLEST_WINDOW = 16, 1024
"""Requests in which a key's share is counted: enough to tell a share that deserves two homes."""


class Placement:
    """The replicas of one base model that are up. It lives on the event loop's thread."""

    def __init__(self) -> None:
        self.replicas: tuple[Replica, ...] = ()
        """Never changed in place, since other threads read it."""
        self._places: dict[Replica, int] = {}
        self._rendezvous: Rendezvous | None = None
        """None where there is nothing to choose."""
        self._mean_seconds = 0.0
        """How long requests take of late."""
        self._popularity = Popularity(_SMALLEST_WINDOW)

    def update(self, replicas: Iterable[Replica]) -> None:
        """Takes over which replicas there are, and what they have reported."""
        there = tuple(replicas)
        if there != self.replicas:
            self.replicas = there
            self._places = {replica: place for place, replica in enumerate(there)}
            self._popularity.window = max(_SMALLEST_WINDOW, _WINDOW_PER_REPLICA * len(there))
            self._rendezvous = _rendezvous_of(there)
        if self._rendezvous:
            self._rendezvous.set_loads([self._load_of(replica) for replica in there])

    def choose(self, key: str, exclude: Collection[Replica] = ()) -> Replica | None:
        """Returns the replica to ask, or None if there are no others than those in `exclude`.

        `key` is the adapter's name or, for the base model alone, what prompts that share a cache share.
        """
        excluded = [self._places[replica] for replica in exclude if replica in self._places]
        count = len(self.replicas)
        if self._rendezvous is None or len(excluded) == count:
            return None if len(excluded) == count else self.replicas[0]
        homes = round(_HOMES_PER_REPLICA * count * self._popularity.count(key))
        place = self._rendezvous.choose(
            key, homes, excluded, lambda place: key in self.replicas[place].adapters
        )
        return self.replicas[place]

    @contextmanager
    def serving(self, replica: Replica) -> Generator[None]:
        """Counts a request as in flight at the replica for as long as the block runs."""
        began = time.monotonic()
        self._add(replica, 1)
        try:
            yield
        finally:
            self._add(replica, -1)
            self._mean_seconds += (time.monotonic() - began - self._mean_seconds) / 64

    def _add(self, replica: Replica, requests: int) -> None:
        replica.in_flight += requests
        if self._rendezvous and (place := self._places.get(replica)) is not None:
            self._rendezvous.add_load(place, requests)

    def _load_of(self, replica: Replica) -> float:
        """Returns a replica's load. Of requests elsewhere, the longer they take the more are still there."""
        still_there = self._mean_seconds / (self._mean_seconds + _REPORT_SECONDS)
        return replica.in_flight + still_there * replica.in_flight_elsewhere


def _rendezvous_of(replicas: tuple[Replica, ...]) -> Rendezvous | None:
    if len(replicas) < 2:
        return None
    from app.completions.rendezvous import Rendezvous  # noqa: PLC0415 - numpy, which one replica does without

    return Rendezvous([replica.id for replica in replicas])
