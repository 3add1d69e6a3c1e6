"""Which adapters the database has vLLM serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sqlalchemy.exc import OperationalError

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.models.adapters.validation import AdapterError
from tests.support.peft_folder import BASE, bad_weights, spoilt, tensors, write_adapter
from tests.support.service import BASE_MODEL
from workers.inference import lora_resolver
from workers.inference.lora_resolver import PublishedAdapters

pytestmark = pytest.mark.usefixtures("job")


@pytest.fixture
def published(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishedAdapters]:
    monkeypatch.setattr(lora_resolver, "Settings", lambda: settings)
    monkeypatch.setattr(lora_resolver, "module_shapes", lambda _: BASE)
    published = PublishedAdapters(BASE_MODEL)
    yield published
    published._database.dispose()


@pytest.fixture
def job(database: Database) -> None:
    """A job for adapters to come from."""
    from tests.support.job_rows import add_job

    with database.writer() as session:
        add_job(session)


def publish(database: Database, settings: Settings, name: str, **columns: object) -> Path:
    with database.writer() as session:
        row = {"project_id": "proj_t", "job_id": "ftjob-t", "base_model": BASE_MODEL, "storage_key": "a"}
        session.add(Adapter(name=name, **row | columns))
    settings.storage_root.mkdir(exist_ok=True)
    return write_adapter(settings.storage_root / "a")


async def test_a_published_adapter(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    folder = publish(database, settings, "ft:mine")
    request = await published.resolve("ft:mine")
    assert request is not None
    assert (request.lora_name, request.lora_path) == ("ft:mine", str(folder))


def test_others_do_not_exist(database: Database, settings: Settings, published: PublishedAdapters) -> None:
    publish(database, settings, "ft:deleted", deleted_at=time.time())
    publish(database, settings, "ft:another-base", base_model="another-base")
    for name in ("ft:deleted", "ft:another-base", "ft:none", "../../etc"):
        assert published.folder_of(name) is None


def reason(database: Database, name: str) -> str | None:
    with database.reader() as session:
        return session.get_one(Adapter, name).quarantine_reason


def corrupt(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(next(bad for case, bad, _ in bad_weights(b"") if case == "noise"))


def truncate(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def pickle(folder: Path) -> None:
    torch.save(tensors(), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def link_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (corrupt, "has no header"),
        (truncate, "its header describes"),
        (pickle, "may run code"),
        (link_weights, "is a link"),
        (link_folder, "its folder is a link"),
        (lambda folder: write_adapter(folder, spoilt(float("nan"))), "not numbers"),
        (lambda folder: write_adapter(folder, spoilt(float("inf"))), "not numbers"),
        (lambda folder: write_adapter(folder, tensors({next(iter(BASE)): [12, 9]})), "has shape"),
        (lambda folder: write_adapter(folder, tensors({"another.base": [12, 8]})), "fits no module"),
        (lambda folder: write_adapter(folder, tensors(rank=64), r=64), "up to 32 can be served"),
        (lambda folder: write_adapter(folder, modules_to_save=["lm_head"]), "modules_to_save"),
    ],
)
def test_a_bad_one_is_quarantined(
    database: Database,
    settings: Settings,
    published: PublishedAdapters,
    spoil: Callable[[Path], object],
    says: str,
) -> None:
    spoil(publish(database, settings, "ft:bad"))
    with pytest.raises(AdapterError, match="The model ft:bad cannot be served"):
        published.folder_of("ft:bad")
    assert says in (reason(database, "ft:bad") or "")
    shutil.rmtree(settings.storage_root)  # it is not looked at again
    with pytest.raises(AdapterError, match="The model ft:bad cannot be served") as caught:
        published.folder_of("ft:bad")
    assert says in str(caught.value)


@pytest.mark.parametrize("key", ["../outside/a", "inside/outside/a"])
def test_a_path_out_of_the_storage(
    database: Database, settings: Settings, published: PublishedAdapters, key: str
) -> None:
    publish(database, settings, "ft:bad", storage_key=key)
    outside = settings.storage_root.parent / "outside"
    write_adapter(outside / "a")
    (settings.storage_root / "inside").mkdir()
    (settings.storage_root / "inside" / "outside").symlink_to(outside)
    with pytest.raises(AdapterError, match="outside the storage"):
        published.folder_of("ft:bad")
    assert reason(database, "ft:bad") == "its folder is outside the storage"


def test_a_storage_that_is_away_condemns_nobody(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    folder = publish(database, settings, "ft:mine")
    for place in (settings.storage_root, folder, folder / "adapter_model.safetensors"):
        place.rename(settings.data_dir / "away")
        assert published.folder_of("ft:mine") is None
        assert reason(database, "ft:mine") is None
        (settings.data_dir / "away").rename(place)
    assert published.folder_of("ft:mine") == folder


def test_the_first_reason_stands(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    truncate(publish(database, settings, "ft:bad"))
    published.quarantine("ft:bad", "x" * 2000)
    published.quarantine("ft:bad", "another")
    assert reason(database, "ft:bad") == "x" * 1024


def test_a_database_that_is_away_only_means_that_it_is_not_written(
    database: Database,
    settings: Settings,
    published: PublishedAdapters,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("connection refused"))

    truncate(publish(database, settings, "ft:bad"))
    with monkeypatch.context() as patch:
        patch.setattr(lora_resolver.service, "quarantine", away)
        with pytest.raises(AdapterError, match="its header describes"):
            published.folder_of("ft:bad")
    assert "connection refused" in caplog.text
    assert reason(database, "ft:bad") is None
    with pytest.raises(AdapterError):
        published.folder_of("ft:bad")
    assert reason(database, "ft:bad") is not None


class Loader:
    """As vLLM's, which finds what our own checks do not."""

    def __init__(self, error: Exception | None, modules: tuple[str, ...] = ("mlp", "attention")) -> None:
        self.error = error
        self.held: set[int] = set()
        adapter = SimpleNamespace(loras=dict.fromkeys(modules))
        known = {"mlp": None, "attention": None}
        self._adapter_manager = SimpleNamespace(modules=known, get_adapter=lambda _: adapter)

    def add_adapter(self, lora_request: Any) -> bool:
        self.held.add(lora_request.lora_int_id)
        if self.error:
            raise self.error
        return True

    def remove_adapter(self, adapter_id: int) -> None:
        self.held.discard(adapter_id)


@pytest.mark.parametrize(
    ("error", "is_verdict"),
    [
        (None, False),
        (ValueError("LoRA rank 64 is greater than max_lora_rank 32."), True),
        (RuntimeError("The size of tensor a (8) must match"), True),
        (AssertionError(), True),
        (KeyError("r"), True),
        (OSError(5, "Input/output error"), False),
        (MemoryError(), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_what_vllm_cannot_load_is_quarantined(
    database: Database,
    settings: Settings,
    published: PublishedAdapters,
    error: Exception | None,
    is_verdict: bool,
) -> None:
    pytest.importorskip("vllm")
    publish(database, settings, "ft:mine")
    watched = type("Watched", (Loader,), {})
    lora_resolver.watch_loader(watched, published)
    loader = watched(error)
    request = SimpleNamespace(lora_name="ft:mine", lora_int_id=7)
    if error is None:
        assert loader.add_adapter(request)
    else:
        with pytest.raises(type(error)):
            loader.add_adapter(request)
    assert (reason(database, "ft:mine") is not None) == is_verdict
    if is_verdict:
        assert (reason(database, "ft:mine") or "").startswith("vLLM cannot load it: ")
        assert loader.held == set()


def test_what_vllm_would_serve_in_part_is_quarantined(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    pytest.importorskip("vllm")
    publish(database, settings, "ft:mine")
    watched = type("Watched", (Loader,), {})
    lora_resolver.watch_loader(watched, published)
    loader = watched(None, ("mlp", "experts.0.w1"))
    with pytest.raises(ValueError, match=r"experts\.0\.w1"):
        loader.add_adapter(SimpleNamespace(lora_name="ft:mine", lora_int_id=7))
    assert "vLLM would ignore its weights of 1 modules" in (reason(database, "ft:mine") or "")
    assert loader.held == set()
