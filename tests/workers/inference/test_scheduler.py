"""The engine's scheduler, without a model: what it computes in each step."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.support.service import BASE_MODEL  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's and torch's own, as they are imported
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus
    from vllm.v1.structured_output import StructuredOutputManager

    from workers.inference import scheduler as module
    from workers.inference.cpu_scheduler import CpuScheduler
    from workers.inference.scheduler import AsyncInteractiveFirstScheduler, InteractiveFirstScheduler

BLOCK = 16
PROMPT = 40


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Engine:
    """A scheduler, and a model runner that makes the token 7 of everything."""

    def __init__(self, kind: type[InteractiveFirstScheduler], folder: Path, blocks: int) -> None:
        model = ModelConfig(model=str(folder), dtype="bfloat16", seed=0)
        limits = SchedulerConfig(
            max_num_seqs=16,
            max_num_batched_tokens=512,
            max_model_len=2048,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy="priority",
            async_scheduling=False,
        )
        cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=True)
        cache.num_gpu_blocks = blocks
        adapters = LoRAConfig(max_lora_rank=8, max_loras=1)
        config = VllmConfig(
            model_config=model, scheduler_config=limits, cache_config=cache, lora_config=adapters
        )
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )
        self._number = count(1)
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK, sha256)

    def ask(
        self,
        name: str,
        *,
        of_batch: bool = False,
        prompt: int = PROMPT,
        tokens: int = 50,
        adapter: int | None = None,
        schema: StructuredOutputsParams | None = None,
        project: str | None = None,
    ) -> Request:
        request = Request(
            request_id=name,
            prompt_token_ids=[next(self._number)] * prompt,
            sampling_params=SamplingParams(max_tokens=tokens, ignore_eos=True, structured_outputs=schema),
            pooling_params=None,
            priority=int(of_batch),
            block_hasher=self._hasher,
            cache_salt=project,
            lora_request=None if adapter is None else LoRARequest(f"a{adapter}", adapter, "/adapter"),
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> dict[str, int]:
        """What a step computes: the tokens of each request."""
        scheduled: SchedulerOutput = self.scheduler.schedule()
        names = list(scheduled.num_scheduled_tokens)
        done = [[] if self.scheduler.requests[name].is_prefill_chunk else [7] for name in names]
        runner = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=done,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(scheduled, runner)
        return dict(scheduled.num_scheduled_tokens)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(params=[InteractiveFirstScheduler, AsyncInteractiveFirstScheduler])
def start(request: Any, clock: Clock, base_models_dir: Path) -> Callable[..., Engine]:
    return lambda blocks=1000: Engine(request.param, base_models_dir / BASE_MODEL, blocks)


def test_batches_alone_are_computed_as_vllm_does(start: Callable[..., Engine]) -> None:
    engine = start()
    for number in range(5):
        engine.ask(f"b{number}", of_batch=True)
    assert engine.step() == {f"b{number}": PROMPT for number in range(5)}
    assert engine.step() == {f"b{number}": 1 for number in range(5)}


def test_an_interactive_request_has_the_steps_for_itself(start: Callable[..., Engine], clock: Clock) -> None:
    engine = start()
    for number in range(20):
        engine.ask(f"b{number}", of_batch=True)
    assert len(engine.step()) == 13
    engine.ask("i", tokens=3)
    engine.ask("late", of_batch=True)
    assert engine.step() == {"i": PROMPT}
    assert engine.step() == {"i": 1}
    assert engine.step() == {"i": 1}
    after = engine.step()
    assert sum(after.values()) == module._SHORT_STEP_TOKENS
    assert "i" not in after
    clock.now += module._ALERT_SECONDS + 1
    assert sum(engine.step().values()) > module._SHORT_STEP_TOKENS


def test_no_batch_starves(start: Callable[..., Engine], clock: Clock) -> None:
    engine = start()
    engine.ask("b", of_batch=True)
    engine.step()
    engine.ask("i", tokens=1000)
    steps: list[str] = []
    for _ in range(100):
        clock.now += 0.05
        computed = engine.step()
        assert len(computed) == 1, "they never share a step"
        steps += computed
    assert 5 <= steps.count("b") <= 12
    assert steps[0] == "i"


def test_an_interactive_request_gets_room_in_the_cache(start: Callable[..., Engine]) -> None:
    engine = start(blocks=21)  # one of which vLLM keeps
    batches = [engine.ask(f"b{number}", of_batch=True, prompt=70) for number in range(4)]
    assert len(engine.step()) == 4
    engine.ask("i", prompt=70, tokens=2)
    computed = [engine.step() for _ in range(3)]
    assert {"i": 70} in computed
    assert sum(request.num_preemptions for request in batches) == 1, "and no more than it needs"
    for _ in range(600):
        engine.step()
    assert engine.scheduler.requests == {}


def test_an_interactive_request_gets_a_place_in_the_batch(start: Callable[..., Engine]) -> None:
    engine = start()
    for number in range(16):
        engine.ask(f"b{number}", of_batch=True, prompt=20)
    assert len(engine.step()) == 16
    engine.ask("i", prompt=20)
    assert {"i": 20} in [engine.step() for _ in range(3)]


def test_batches_keep_their_places_where_room_is_not_what_is_lacking(start: Callable[..., Engine]) -> None:
    engine = start()
    batches = [engine.ask(f"b{number}", of_batch=True) for number in range(4)]
    engine.step()
    for number in range(3):
        engine.ask(f"i{number}", prompt=2000, tokens=2)  # four full steps each
    for _ in range(10):
        assert sum(engine.step().values()) == 512
    engine = start()
    batches += [engine.ask(f"b{number}", of_batch=True) for number in range(4)]
    engine.step()
    engine.ask("one", adapter=1, tokens=10)
    engine.ask("other", adapter=2)
    for _ in range(8):
        assert list(engine.step()) == ["one"]
    assert [request.num_preemptions for request in batches] == [0] * 8


def test_a_batch_that_waits_behind_others_has_its_turn(start: Callable[..., Engine], clock: Clock) -> None:
    engine = start()
    steps: list[list[str]] = []
    for number in range(40):
        engine.ask(f"i{number}", prompt=1000, tokens=1)  # two steps each, so that they pile up
        if number == 2:
            engine.ask("b", of_batch=True, tokens=2)
        clock.now += 0.3
        steps.append(list(engine.step()))
    assert 3 <= steps.count(["b"]) <= 6
    assert all(steps), "no step is empty"


def test_no_turn_of_batches_is_empty(start: Callable[..., Engine], clock: Clock) -> None:
    engine = start()
    for number in range(18):
        engine.ask(f"i{number}", prompt=20, tokens=100)
    engine.step()
    engine.ask("b", of_batch=True)
    for _ in range(50):
        clock.now += 0.3
        assert "b" not in (computed := engine.step()), "all places are taken"
        assert len(computed) == 16


def test_the_project_that_computes_the_fewest_is_next(start: Callable[..., Engine]) -> None:
    engine = start()
    for number in range(40):
        engine.ask(f"a{number}", prompt=20, tokens=3, project="a")
    assert list(engine.step()) == [f"a{number}" for number in range(16)]
    for number in range(4):
        engine.ask(f"b{number}", prompt=20, tokens=3, project="b")
    order = list(dict.fromkeys(name for _ in range(80) for name in engine.step()))
    beyond = [name for name in order if name not in {f"a{number}" for number in range(16)}]
    assert beyond[:4] == ["b0", "b1", "b2", "b3"], "they wait for none of those that came before them"
    assert engine.scheduler.requests == {}, "and nothing is left behind"


def test_a_project_that_computes_many_gives_a_place_to_another(
    start: Callable[..., Engine], clock: Clock
) -> None:
    engine = start()
    greedy = [engine.ask(f"a{number}", prompt=20, tokens=100, project="a") for number in range(40)]
    engine.step()
    engine.ask("b", prompt=20, tokens=100, project="b")
    assert engine.step() == {"b": 20}, "at once, and with nothing else in the step"
    assert [each.request_id for each in greedy if each.num_preemptions] == ["a15"], "the newest, and no more"
    for number in range(20):
        engine.ask(f"c{number}", prompt=20, tokens=100, project="c")
    for _ in range(50):
        clock.now += 1
        computed = engine.step()
    shares = {project: sum(name[0] == project for name in computed) for project in "abc"}
    assert shares == {"a": 10, "b": 1, "c": 5}, "a project with more than twice as many gives one up"
    for _ in range(1500):
        engine.step()
    assert engine.scheduler.requests == {}


def test_a_full_cache_costs_the_project_that_computes_the_most(start: Callable[..., Engine]) -> None:
    engine = start(blocks=41)  # one of which vLLM keeps
    greedy = [engine.ask(f"a{number}", prompt=70, tokens=200, project="a") for number in range(20)]
    for _ in range(5):
        engine.step()
    other = engine.ask("b", prompt=70, tokens=200, project="b")
    for _ in range(200):
        engine.step()
    assert other.num_preemptions == 0
    assert sum(each.num_preemptions for each in greedy) > 1


SMALL = StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "string"}}})
LARGE = StructuredOutputsParams(json={"type": "string", "maxLength": 1000})


class Compiler:
    """Compiles nothing, once it may, and notes for whom and how much the threads give way."""

    def __init__(self, engine: Engine) -> None:
        self.go_on = threading.Event()
        self.niceness: dict[str, int] = {}
        self.manager = engine.scheduler.structured_output_manager
        self.manager.backend = object()  # type: ignore[assignment]
        self.manager._create_grammar = self.compile  # type: ignore[method-assign]

    def compile(self, request: Request) -> Any:
        if "large" in request.request_id:
            assert self.go_on.wait(30)
        self.niceness[request.request_id] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def ask(self, engine: Engine, name: str, schema: StructuredOutputsParams) -> Future[Any]:
        request = engine.ask(name, schema=schema)
        self.manager.grammar_init(request)
        assert request.structured_output_request
        return request.structured_output_request._grammar  # type: ignore[return-value]


def test_grammars_are_compiled_in_the_time_that_the_model_leaves(start: Callable[..., Engine]) -> None:
    engine = start()
    compiler = Compiler(engine)
    large = [compiler.ask(engine, f"large{number}", LARGE) for number in range(9)]
    compiler.ask(engine, "small", SMALL).result(30)  # which waits for no large one
    assert list(compiler.niceness) == ["small"]
    compiler.go_on.set()
    for each in large:
        each.result(30)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert own < compiler.niceness["small"] < compiler.niceness["large0"] == compiler.niceness["large8"]


def test_a_grammar_is_not_compiled_for_a_caller_who_has_left(start: Callable[..., Engine]) -> None:
    engine = start()
    compiler = Compiler(engine)
    waiting = [compiler.ask(engine, f"large{number}", LARGE) for number in range(9)]
    assert engine.step() == {}
    engine.scheduler.finish_requests("large8", RequestStatus.FINISHED_ABORTED)
    assert waiting[8].cancelled()
    compiler.go_on.set()
    compiler.manager.executor.shutdown(wait=True)
    assert "large8" not in compiler.niceness
    assert "large7" in compiler.niceness


def test_a_step_is_computed_on_the_cores_that_are_free(
    clock: Clock, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = [2]
    monkeypatch.setattr("workers.inference.spare_cores.SpareCores.count", lambda _: spare[0])
    set_num_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # as vLLM does
    before = torch.get_num_threads()
    try:
        engine = Engine(CpuScheduler, base_models_dir / BASE_MODEL, 1000)
        engine.ask("a")
        for threads in (2, 1, 2):
            spare[0] = threads
            engine.step()
            assert torch.get_num_threads() == threads
        compiler = Compiler(engine)
        compiler.ask(engine, "large", LARGE)
        engine.step()
        assert torch.get_num_threads() == 1, "the others are left to a grammar"
        engine.scheduler.finish_requests("large", RequestStatus.FINISHED_ABORTED)
        compiler.go_on.set()
        compiler.manager.executor.shutdown(wait=True)
        engine.step()
        assert torch.get_num_threads() == 2
    finally:
        set_num_threads(before)
