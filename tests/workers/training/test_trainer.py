"""The trainer through its protocol, and its arithmetic against plain transformers and PEFT in fp32."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.packing import Limits
from app.models.adapters.validation import check_adapter, module_shapes
from app.models.token_mixing import TokenMixing
from tests.support.examples import Lines, chat, colours
from tests.support.gradients import adapter_weights, gradients, randomize, with_lora
from tests.support.trainer import COMMAND, ENVIRONMENT, Child, with_
from workers.training import learning, model
from workers.training.dataset import TrainingExample, load_examples, micro_batches
from workers.training.failure import explain
from workers.training.layouts import packed, set_layout, target_logits
from workers.training.layouts.packed import pack
from workers.training.objectives import CrossEntropyLoss, MeanMetrics
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Progress,
    Started,
    Step,
    TrainingSpec,
)
from workers.training.training_state import RandomState

CPU = torch.device("cpu")
PACKED = TokenMixing("packed", "its tokens mix by causal attention alone")
WIDE = Limits(tokens=1 << 20, targets=1 << 20)


def adapter_bytes(said: list[Progress]) -> bytes:
    assert isinstance(said[-1], Finished), said[-1]
    return (Path(said[-1].path) / "adapter_model.safetensors").read_bytes()


# The protocol


def test_a_job_reports_every_step_and_leaves_an_adapter(
    child: Child, spec: TrainingSpec, jsonl: Lines
) -> None:
    validation = jsonl(colours(6), "validation.jsonl")
    said = child.train(with_(spec, n_epochs=4, validation_file=str(validation)))

    started, finished = said[0], said[-1]
    assert isinstance(started, Started) and isinstance(finished, Finished)
    assert (started.total_steps, started.examples) == (20, 20)
    steps = [message for message in said if isinstance(message, Step)]
    assert [step.metrics.step for step in steps] == list(range(1, 21))
    assert [step.epoch for step in steps] == [number // 5 + 1 for number in range(20)]
    assert steps[-1].tokens == 4 * started.tokens_per_epoch == finished.trained_tokens
    losses = [step.metrics.train_loss or 0.0 for step in steps]
    assert losses[-1] < losses[0] / 2
    assert all(0 <= (step.metrics.train_mean_token_accuracy or 0) <= 1 for step in steps)
    # A small fixed batch every few steps, all of the file once an epoch.
    assert [step.metrics.step for step in steps if step.metrics.valid_loss] == [5, 10, 15, 20]
    checkpoints = [message for message in said if isinstance(message, Checkpoint)]
    assert [Path(message.path).name for message in checkpoints] == ["step-5", "step-10", "step-15", "step-20"]
    full = [message.metrics.full_valid_loss or 0.0 for message in checkpoints]
    assert full[-1] < full[0]
    assert checkpoints[-1].metrics.full_valid_mean_token_accuracy is not None
    assert finished.path == checkpoints[-1].path
    assert finished.peak_memory_bytes > 10**7


def test_the_learning_rate_rises_then_falls_to_its_end(spec: TrainingSpec) -> None:
    hp = msgspec.structs.replace(spec.hyperparameters, warmup_ratio=0.2, learning_rate=1.0)
    rates = [learning.learning_rate(step, 20, hp) for step in range(20)]

    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 16)


def test_the_same_spec_gives_the_same_adapter_in_a_cold_process_too(child: Child, spec: TrainingSpec) -> None:
    warm = adapter_bytes(child.train(with_(spec, lora_dropout=0.1)))
    again = adapter_bytes(child.train(with_(spec, lora_dropout=0.1)))
    other_seed = adapter_bytes(child.train(with_(spec, lora_dropout=0.1, seed=43)))
    cold_child = Child()
    cold = adapter_bytes(cold_child.train(with_(spec, lora_dropout=0.1)))

    assert warm == again == cold
    assert warm != other_seed
    assert cold_child.close() == 0  # its stdin ended


def test_a_checkpoint_is_whole_and_loads_in_peft(
    child: Child, spec: TrainingSpec, base_model_dir: Path
) -> None:
    said = child.train(spec)

    parent = Path(spec.output_dir) / "checkpoints"
    assert sorted(folder.name for folder in parent.iterdir()) == ["step-10", "step-5"]  # no tmp-… is left
    for folder in parent.iterdir():
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files = {file.name for file in folder.iterdir()} - {"manifest.json"}
        assert files == {"adapter_model.safetensors", "adapter_config.json", "training_state.pt"}
        sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
        assert manifest["sha256"] == sums

    config = json.loads((parent / "step-10" / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["r"] == 4
    assert set(config["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    state = torch.load(parent / "step-10" / "training_state.pt", weights_only=True)
    assert (state["step"], state["metrics"]["step"]) == (10, 10)
    assert len(state["optimizer"]["state"]) == 2 * 7 * 2
    # Plain PEFT, on a plain base, finds every weight and gets the loss that the trainer reported last.
    base = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, str(parent / "step-10")).eval()
    examples = load_examples(Path(spec.training_file), ChatTemplate.load(base_model_dir), 400)
    with torch.no_grad():
        loss = float(reference_loss(loaded, examples))
    last = [message for message in said if isinstance(message, Step)][-1]
    assert loss == pytest.approx(last.metrics.train_loss, rel=0.5)


@pytest.mark.parametrize(
    ("wanted", "adapted"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        (["layers.1.self_attn.q_proj", "up_proj"], {"q_proj", "up_proj"}),
    ],
)
def test_only_target_modules_are_adapted(
    child: Child, spec: TrainingSpec, wanted: str | list[str], adapted: set[str]
) -> None:
    [*_, finished] = child.train(with_(spec, target_modules=wanted, n_epochs=1))
    assert isinstance(finished, Finished)
    names = {name.split(".lora_")[0] for name in load_file(Path(finished.path) / "adapter_model.safetensors")}
    assert {name.rpartition(".")[2] for name in names} == adapted
    assert len(names) == (3 if isinstance(wanted, list) else 2 * len(adapted))
    check_adapter(Path(finished.path), module_shapes(Path(spec.base_model_dir)), max_rank=None)


def test_modules_that_the_base_lacks_fail_the_job(child: Child, spec: TrainingSpec) -> None:
    [failed] = child.train(with_(spec, target_modules=["c_attn"]))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_value", "target_modules")
    assert "there is no c_attn; there are: down_proj, " in failed.message


def test_files_that_cannot_be_trained_on_are_named(child: Child, spec: TrainingSpec, jsonl: Lines) -> None:
    long = str(jsonl([*colours(10), chat("x" * 900, "red")], "long.jsonl"))

    [failed] = child.train(with_(spec, training_file=long))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_training_file", "training_file")
    assert "Line 11 has" in failed.message and "max_length (400)" in failed.message

    [failed] = child.train(with_(spec, validation_file=long))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_validation_file", "validation_file")


def test_a_diverging_job_fails_and_the_next_is_as_if_it_had_never_been(
    child: Child, spec: TrainingSpec
) -> None:
    before = adapter_bytes(child.train(with_(spec)))
    failed = child.train(with_(spec, learning_rate=1e30))[-1]
    after = adapter_bytes(child.train(with_(spec)))

    assert isinstance(failed, Failed)
    assert failed.code == "training_diverged"
    assert "learning_rate_multiplier" in failed.message
    assert before == after


def test_an_unforeseen_error_fails_the_job_and_not_the_process(child: Child, spec: TrainingSpec) -> None:
    failed = child.train(with_(spec, lora_rank=-1))[-1]

    assert isinstance(failed, Failed)
    assert failed.code == "internal_error"
    assert isinstance(child.train(with_(spec))[-1], Finished)


def test_a_file_that_the_worker_lacks_is_named(child: Child, spec: TrainingSpec) -> None:
    failed = child.train(with_(spec, training_file="/nowhere.jsonl"))[-1]

    assert isinstance(failed, Failed)
    assert failed.code == "storage_unusable"
    assert "/nowhere.jsonl" in failed.message
    assert isinstance(child.train(with_(spec))[-1], Finished)


def test_out_of_memory_says_what_to_do(spec: TrainingSpec) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)

    failed = explain(error.value, spec)
    assert failed.code == "out_of_memory"
    assert "batch_size" in failed.message and "max_length" in failed.message


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills the children of the dead")
def test_no_trainer_outlives_its_worker(spec: TrainingSpec) -> None:
    endless = msgspec.json.encode(with_(spec, n_epochs=10**6)).decode()
    worker = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({COMMAND!r}, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        f"child.stdin.write({endless!r}.encode() + b'\\n'); child.stdin.flush(); child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", worker], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    trainer_pid = int(parent.stdout.readline())
    assert b"started" in parent.stdout.readline()
    assert b"step" in parent.stdout.readline()

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # The pipe that both wrote to ends when the last of them is gone.
    parent.stdout.read()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{trainer_pid}/cmdline").exists() and b"trainer" in cmdline(trainer_pid):
        assert time.monotonic() < deadline, "the trainer still runs"
        time.sleep(0.05)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# The arithmetic


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads that wait for each other by spinning take ages where other tests keep the cores busy."""
    torch.set_num_threads(1)


@pytest.fixture
def examples(base_model_dir: Path, jsonl: Lines) -> list[TrainingExample]:
    several_turns = {
        "messages": [
            {"role": "system", "content": "Say the colour of the thing."},
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "wrong", "weight": 0},
            {"role": "user", "content": "B?"},
            {"role": "assistant", "content": "right"},
        ]
    }
    lines = [*colours(6), several_turns, chat("no, the other?", "a longer answer than the others' are")]
    return load_examples(jsonl(lines), ChatTemplate.load(base_model_dir), 1000)


def reference_loss(plain: torch.nn.Module, examples: list[TrainingExample]) -> Tensor:
    """Mean over all targets, one example at a time, all its logits: nothing of the trainer's own."""
    losses: list[Tensor] = []
    for example in examples:
        [sequence] = example.sequences
        ids = torch.tensor([sequence.input_ids])
        learnt = torch.tensor(sequence.target_mask[1:])
        logits = plain(input_ids=ids).logits[0, :-1]
        losses.append(F.cross_entropy(logits[learnt], ids[0, 1:][learnt], reduction="none"))
    return torch.cat(losses).mean()


def reference_gradients(base_model_dir: Path, examples: list[TrainingExample]) -> tuple[float, Tensor]:
    base = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    plain = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names)
    )
    loss = reference_loss(randomize(plain), examples)
    loss.backward()
    return loss.item(), gradients(plain)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(model, "compute_dtype", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("written_out", [0, 1 << 20], ids=["torch's attention", "written out"])
@pytest.mark.parametrize("limits", [WIDE, Limits(tokens=150, targets=1000)], ids=["one batch", "several"])
def test_loss_and_gradient_are_those_of_plain_peft(
    base_model_dir: Path,
    examples: list[TrainingExample],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    written_out: int,
    limits: Limits,
) -> None:
    monkeypatch.setattr(packed, "WRITTEN_OUT", written_out)
    expected_loss, expected = reference_gradients(base_model_dir, examples)

    base = model.load_base(base_model_dir, CPU)
    set_layout(base, "packed")
    adapted = randomize(with_lora(base, base_model_dir))
    targets = sum(example.targets for example in examples)
    batches = [
        pack(example.sequences for example in micro_batch) for micro_batch in micro_batches(examples, limits)
    ]
    assert (len(batches) == 1) == (limits is WIDE)
    assert batches[0].shared > 10
    total = 0.0
    for batch in batches:
        loss = F.cross_entropy(target_logits(base, batch), batch.targets, reduction="sum") / targets
        loss.backward()
        total += loss.item()

    actual = gradients(adapted)
    if dtype == torch.float32:
        assert total == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    else:
        assert total == pytest.approx(expected_loss, rel=1e-2)
        assert float(F.cosine_similarity(actual, expected, dim=0)) > 0.99


def test_a_cut_batch_makes_the_same_optimizer_step(
    base_model_dir: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "compute_dtype", lambda device: torch.float32)
    base = model.load_warm_base(base_model_dir)
    learnt: list[dict[str, Tensor]] = []
    metrics: list[MeanMetrics] = []
    for limits in (WIDE, Limits(tokens=1, targets=1)):
        adapted = randomize(with_lora(base.model, base.folder))
        weights = list(adapter_weights(adapted).values())
        optimizer = torch.optim.SGD(weights, lr=1.0)
        learner = learning.Learner(base, adapted, PACKED, CrossEntropyLoss(), optimizer)
        metrics.append(learner.train_step(examples, 1.0, 1.0, limits))
        learnt.append({name: weight.detach().clone() for name, weight in adapter_weights(adapted).items()})
        adapted.unload()

    assert metrics[0].mean("loss") == pytest.approx(metrics[1].mean("loss"), rel=1e-5)
    assert metrics[0].mean("mean_token_accuracy") == metrics[1].mean("mean_token_accuracy")
    torch.testing.assert_close(learnt[0], learnt[1], rtol=1e-3, atol=1e-5)


def test_a_step_that_is_given_up_never_was(base_model_dir: Path, examples: list[TrainingExample]) -> None:
    base = model.load_warm_base(base_model_dir)
    learnt: list[dict[str, Tensor]] = []
    for given_up in (False, True):
        torch.manual_seed(3)
        adapted = randomize(with_lora(base.model, base.folder, dropout=0.5))
        weights = list(adapter_weights(adapted).values())
        optimizer = torch.optim.AdamW(weights, lr=0.1)
        learner = learning.Learner(base, adapted, PACKED, CrossEntropyLoss(), optimizer)
        one_by_one = Limits(tokens=1, targets=1)
        torch.manual_seed(4)
        random = RandomState.read()
        if given_up:
            calls = iter([None, None])
            with pytest.raises(StopIteration):  # before the third micro-batch
                learner.train_step(examples, 1.0, 1.0, one_by_one, lambda calls=calls: next(calls))
            random.restore()
        learner.train_step(examples, 1.0, 1.0, one_by_one)
        learnt.append({name: weight.detach().clone() for name, weight in adapter_weights(adapted).items()})
        adapted.unload()
    assert all(torch.equal(weight, learnt[1][name]) for name, weight in learnt[0].items())


def test_dropout_is_pefts(
    base_model_dir: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "compute_dtype", lambda device: torch.float32)
    base = model.load_base(base_model_dir, CPU)
    set_layout(base, "packed")
    adapted = randomize(with_lora(base, base_model_dir, dropout=0.5))
    model.set_training(adapted, is_training=True)
    batch = pack(example.sequences for example in examples)

    def loss_and_gradients() -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        adapted.zero_grad()
        loss = F.cross_entropy(target_logits(base, batch), batch.targets)
        loss.backward()
        return loss.detach(), gradients(adapted)

    ours = loss_and_gradients()
    monkeypatch.setattr(model.LoraLinear, "forward", peft.tuners.lora.Linear.forward)
    torch.testing.assert_close(ours, loss_and_gradients(), rtol=1e-3, atol=1e-5)
