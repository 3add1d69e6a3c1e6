"""The processes that train one adapter together, each on a GPU of its own or, without GPUs, on some cores.

Rank 0 is the trainer that the worker started. It starts the others with its own command and passes every
`TrainingSpec` on to them. All of them run the same code on the same files, each on its share of every batch;
rank 0 alone is heard by the worker, hears its requests, and saves checkpoints.

If one of them dies, the others would wait for it in their next collective, so they die with it: the kernel
ends the others when rank 0 dies, and rank 0 watches them.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import msgspec
import torch
from torch import distributed, nn
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from app.core.child_environment import child_environment
from workers.training.protocol import OUT_OF_MEMORY, RANK_DIED

_PLACE = "TOQUE_RANK"
"""The environment variable that tells a process its `Place`."""
_LOOPBACK = "127.0.0.1"
_COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""Far above any wait that is not a hang: for rank 0 to save a checkpoint, say, or to read a larger file."""
_NOTICE_SECONDS = 10.0
"""How long rank 0 takes at most to learn that another rank has died, once it cannot be reached any more."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process stands among those that train together."""

    rank: int
    size: int
    port: int
    """The port of rank 0's store, where they find each other."""
    parent: int
    """The process id of rank 0."""


class Ranks:
    """This process among those that train together. On its own it is rank 0 of 1, and all of this is free."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._others: list[subprocess.Popen[bytes]] = []
        self._watchers: list[threading.Thread] = []
        self._is_ending = False

    @classmethod
    def of_this_process(cls) -> Ranks:
        """Take the place that rank 0 has given to this process, if any.

        The process must have asked to die with its parent before.
        """
        ranks = cls()
        if (given := os.environ.pop(_PLACE, None)) is not None:
            place = msgspec.json.decode(given, type=Place)
            if os.getppid() != place.parent:
                sys.exit("rank 0 has died")
            ranks._join(place, TCPStore(_LOOPBACK, place.port, wait_for_workers=False))
        return ranks

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes checkpoints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.rank) if self.size > 1 else torch.device("cuda")

    @property
    def devices(self) -> str:
        """What all ranks compute on, for display."""
        return f"{self.size} x {self.device.type}" if self.size > 1 else self.device.type

    def start(self, size: int) -> None:
        """Have so many processes train together until this one ends; only on rank 0, before its first job."""
        listener = socket.create_server((_LOOPBACK, 0))  # torch's own would listen to the whole network
        port: int = listener.getsockname()[1]
        store = TCPStore(
            _LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        threads = max(1, torch.get_num_threads() // size)
        torch.set_num_threads(threads)
        for rank in range(1, size):
            place = Place(rank=rank, size=size, port=port, parent=os.getpid())
            environment = {_PLACE: msgspec.json.encode(place).decode(), "OMP_NUM_THREADS": str(threads)}
            other = subprocess.Popen(
                sys.orig_argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=child_environment(("TOQUE_CRASH_AT",)) | environment,
            )
            watcher = threading.Thread(target=self._watch, args=(rank, other), daemon=True)
            watcher.start()
            self._others.append(other)
            self._watchers.append(watcher)
        self._join(Place(rank=0, size=size, port=port, parent=os.getpid()), store)

    def pass_on(self, line: bytes) -> None:
        """Give the other ranks the line of stdin that this one has read."""
        for other in self._others:
            assert other.stdin is not None
            other.stdin.write(line)
            other.stdin.flush()

    def leave(self) -> None:
        """End training together, after the last job. All ranks leave at once: NCCL waits for them."""
        if self.size == 1:
            return
        self._is_ending = True
        for other in self._others:
            assert other.stdin is not None
            other.stdin.close()
        distributed.destroy_process_group()
        for watcher in self._watchers:
            watcher.join()

    def leave_step(self, *, out_of_memory: bool) -> None:
        """End this process after an error that the other ranks may not have had: they are out of step.

        It returns if this is the only rank, or if it is rank 0 and the error is its own: the worker is told,
        and starts another trainer.
        """
        if self.size == 1:
            return
        if out_of_memory:
            os._exit(OUT_OF_MEMORY)
        if self.rank:
            os._exit(1)
        # If another rank's death is the reason, its watcher ends this process meanwhile.
        self._watchers[0].join(_NOTICE_SECONDS)

    def agree(self, decision: bool) -> bool:
        """Return rank 0's decision. All ranks must ask at the same point."""
        if self.size == 1:
            return decision
        flag = torch.tensor([int(decision)])
        distributed.broadcast(flag, src=0)
        return bool(flag)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, each of which gives as many values."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        cast(Any, distributed).all_reduce(sums)
        return cast(list[float], cast(Any, sums).tolist())

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give every rank the sum of all ranks' gradients, bit by bit the same, in one collective.

        A weight that no rank has a gradient of keeps none.
        """
        if self.size == 1:
            return
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        known = torch.tensor([float(weight.grad is not None) for weight in weights], device=grads[0].device)
        buffer = torch.cat([*(grad.flatten() for grad in grads), known])
        cast(Any, distributed).all_reduce(buffer)
        *summed, known = torch.split(buffer, [*(grad.numel() for grad in grads), len(grads)])
        for weight, grad, ranks in zip(weights, summed, cast(Any, known).tolist(), strict=True):
            weight.grad = grad.view_as(weight) if ranks else None

    def seed_step(self, seed: int, step: int) -> None:
        """Give each rank random numbers of its own for a step, whether or not training was resumed before it.

        One process alone goes on with its own, which checkpoints save.
        """
        if self.size > 1:
            drawn = random.Random(f"{seed}/{step}/{self.rank}").getrandbits(63)  # noqa: S311 - dropout, no secret
            cast(Any, torch).manual_seed(drawn)

    def _join(self, place: Place, store: Store) -> None:
        self.rank, self.size = place.rank, place.size
        if is_gpu := torch.cuda.is_available():
            torch.cuda.set_device(self.rank)
        for interface in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[interface] = "lo"
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=_COLLECTIVE_TIMEOUT,
        )

    def _watch(self, rank: int, other: subprocess.Popen[bytes]) -> None:
        code = other.wait()
        if not self._is_ending:
            print(f"rank {rank} has died (exit code {code})", file=sys.stderr, flush=True)
            os._exit(OUT_OF_MEMORY if code == OUT_OF_MEMORY else RANK_DIED)
