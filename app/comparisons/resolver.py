"""Resolves a request to compare: every name to what it stands for now, and every file to its row."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.comparisons.external import allowed_endpoint
from app.comparisons.graders.judges import rename_judges
from app.comparisons.graders.registry import parse_grader
from app.comparisons.input_files import ExamplePool, InputFiles, ValidatedFiles
from app.comparisons.plan import Candidate, Plan
from app.comparisons.schemas import (
    CheckpointsCandidate,
    CreateCandidate,
    CreateComparison,
    ExternalCandidate,
    FewShotCandidate,
    GraderDocument,
    ModelCandidate,
    PromptCandidate,
)
from app.context import Context
from app.core.errors import InvalidRequestError, ToqueError
from app.core.settings import BaseModelEntry
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import service as fine_tuning_service
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import served_models
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from app.models.aliases.resolution import find_single
from app.models.catalogue import Catalogue
from app.storage.base import Storage

MAX_CANDIDATES = 64
MAX_FILE_BYTES = 64 * 2**20
"""The size of the largest file of questions."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A file that few-shot examples are drawn from, how many, and for which candidate."""

    file: File
    examples: int
    candidate: str
    """The path of the candidate in the request, for errors."""


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request in which every name is resolved; its files are still to be validated."""

    request: CreateComparison
    base: BaseModelEntry
    candidates: list[Candidate]
    api_keys: dict[str, str]
    grader: GraderDocument
    general_grader: GraderDocument
    held_out: File
    general: File | None
    training: dict[str, File]
    """Training files by id, whose questions are left out."""
    pools: list[Pool]
    unchecked_files: list[str]

    @contextmanager
    def input_files(self, storage: Storage) -> Generator[InputFiles]:
        """Have all files on this machine until the block ends.

        Raises:
            UnavailableError: the storage does not have a file, or cannot be reached now.
        """
        with ExitStack() as stack:

            def path_of(file: File) -> Path:
                return stack.enter_context(files_service.content(storage, file))

            yield InputFiles(
                held_out=path_of(self.held_out),
                grader=self.grader,
                general=path_of(self.general) if self.general else None,
                general_grader=self.general_grader,
                training={file_id: path_of(file) for file_id, file in self.training.items()},
                pools=[ExamplePool(path_of(each.file), each.examples, each.candidate) for each in self.pools],
            )

    def plan(self, validated: ValidatedFiles) -> Plan:
        """Return what is to be done, now that the files are validated."""
        request = self.request
        has_base = any(
            candidate.type == "base" and candidate.model == self.base.name for candidate in self.candidates
        )
        guard = (
            Candidate(name="", type="base", model=self.base.name)
            if validated.general and not has_base
            else None
        )
        return Plan(
            candidates=self.candidates,
            guard=guard,
            grader=self.grader,
            general_grader=self.general_grader,
            questions=len(validated.questions),
            general_questions=len(validated.general),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            concurrency=request.concurrency,
            seed=request.seed,
            max_regression=request.max_regression,
            margin=request.margin,
            good_enough=request.good_enough,
            unchecked_files=self.unchecked_files,
        )


def resolve_request(session: Session, context: Context, request: CreateComparison) -> ResolvedRequest:
    """Resolve and check everything that can be checked without reading files.

    Raises:
        InvalidRequestError: a field is wrong.
        NotFoundError: a model, a job or a file does not exist.
        FailedDependencyError: a model is quarantined.
        UnavailableError: the storage does not have a file.
    """
    return _Resolver(session, context, request).resolve()


class _Resolver:
    """Resolves one request."""

    def __init__(self, session: Session, context: Context, request: CreateComparison) -> None:
        self._session = session
        self._context = context
        self._settings = context.settings
        self._project_id = context.project_id
        self._request = request
        self._base = self._find_base(request.model)
        self._pools: list[Pool] = []
        self._training: dict[str, File] = {}
        self._unchecked: list[str] = []

    def _find_base(self, requested: str) -> BaseModelEntry:
        """Return the base model of that name or alias."""
        with _as_param("model"):
            name = find_single(self._session, self._settings, self._project_id, requested)
            adapter = adapters_service.get_adapter(self._session, self._settings, self._project_id, name)
        if adapter is not None:
            raise InvalidRequestError(
                f"'{name}' is fine-tuned; 'model' is a base model, and what is fine-tuned is a candidate.",
                code="invalid_value",
                param="model",
            )
        return Catalogue.read(self._session, self._settings).get(name)

    def resolve(self) -> ResolvedRequest:
        request = self._request
        held_out = self._questions(request.file, "file")
        general = (
            self._questions(request.regression_file, "regression_file") if request.regression_file else None
        )
        grader = self._grader(request.grader, "grader")
        general_grader = (
            grader
            if request.regression_grader is None
            else self._grader(request.regression_grader, "regression_grader")
        )
        candidates, api_keys = self._resolve_candidates()
        if general is not None and not any(candidate.type == "model" for candidate in candidates):
            raise InvalidRequestError(
                "Only fine-tuned candidates are asked the general questions; there is none.",
                code="invalid_value",
                param="regression_file",
            )
        if request.training_file is not None:
            self._training = {request.training_file: self._file(request.training_file, "training_file")}
            self._unchecked = []
        checked = request.exclude_training_overlap
        unchecked = self._unchecked if checked else []
        return ResolvedRequest(
            request,
            self._base,
            candidates,
            api_keys,
            grader,
            general_grader,
            held_out,
            general,
            self._training if checked else {},
            self._pools,
            list(dict.fromkeys(unchecked)),
        )

    def _resolve_candidates(self) -> tuple[list[Candidate], dict[str, str]]:
        """Return the candidates, each with a unique name, and the API keys of external ones by index."""
        found = [
            (place, candidate)
            for place, entry in enumerate(self._request.candidates)
            for candidate in self._resolve_entry(entry, f"candidates[{place}]")
        ]
        # A checkpoint that is also named by itself is asked once.
        named = {
            candidate.model
            for place, candidate in found
            if isinstance(self._request.candidates[place], ModelCandidate)
        }
        found = [
            (place, candidate)
            for place, candidate in found
            if candidate.model not in named
            or not isinstance(self._request.candidates[place], CheckpointsCandidate)
        ]
        if len(found) > MAX_CANDIDATES:
            raise InvalidRequestError(
                f"These are {len(found)} candidates, checkpoints counted; "
                f"at most {MAX_CANDIDATES} are compared.",
                code="too_many_candidates",
                param="candidates",
            )
        candidates = self._distinct(found)
        keys: dict[str, str] = {}
        for number, (place, _) in enumerate(found):
            entry = self._request.candidates[place]
            if isinstance(entry, ExternalCandidate) and entry.api_key is not None:
                keys[str(number)] = entry.api_key.get_secret_value()
        return candidates, keys

    def _distinct(self, found: Iterable[tuple[int, Candidate]]) -> list[Candidate]:
        """Make names differ: requested ones have to, and generated ones get a number if they are taken."""
        given: set[str] = set()
        for place, candidate in found:
            if self._request.candidates[place].name is None:
                continue
            if candidate.name in given:
                raise InvalidRequestError(
                    f"Two candidates are named '{candidate.name}'.",
                    code="duplicate_name",
                    param=f"candidates[{place}].name",
                )
            given.add(candidate.name)
        taken, candidates = set(given), list[Candidate]()
        for place, candidate in found:
            name, number = candidate.name, 2
            if self._request.candidates[place].name is None:
                while name in taken:
                    name, number = f"{candidate.name}-{number}", number + 1
                taken.add(name)
            candidates.append(candidate.model_copy(update={"name": name}))
        return candidates

    def _resolve_entry(self, entry: CreateCandidate, param: str) -> list[Candidate]:
        name = entry.name
        if isinstance(entry, ModelCandidate):
            return [self._model(entry, param)]
        if isinstance(entry, CheckpointsCandidate):
            return self._checkpoints(entry, param)
        if isinstance(entry, ExternalCandidate):
            return [self._external(entry, param)]
        if isinstance(entry, FewShotCandidate):
            return [self._few_shot(entry, param)]
        if isinstance(entry, PromptCandidate):
            candidate = Candidate(
                name=name or "prompt", type="prompt", model=self._base.name, system=entry.system
            )
            return [candidate]
        return [Candidate(name=name or "base", type="base", model=self._base.name)]

    def _few_shot(self, entry: FewShotCandidate, param: str) -> Candidate:
        file = self._file(entry.file, f"{param}.file")
        self._pools.append(Pool(file, entry.examples, param))
        self._training[entry.file] = file
        return Candidate(
            name=entry.name or f"few-shot-{entry.examples}",
            type="few_shot",
            model=self._base.name,
            system=entry.system,
            examples=entry.examples,
            file=entry.file,
            seed=self._request.seed if entry.seed is None else entry.seed,
            selection=entry.selection,
        )

    def _model(self, entry: ModelCandidate, param: str) -> Candidate:
        requested = entry.model
        model = self._resolve(requested, f"{param}.model")
        other_name = requested if requested != model else None
        adapter = adapters_service.get_adapter(self._session, self._settings, self._project_id, model)
        name = entry.name or requested
        if adapter is None:
            return Candidate(name=name, type="base", model=model, requested_model=other_name)
        job = self._job(adapter)
        candidate = Candidate(name=name, type="model", model=model, requested_model=other_name)
        if job is None:
            return candidate
        return candidate.model_copy(
            update={
                "job": job.id,
                "step": self._steps(job).get(model),
                "is_final": model == job.fine_tuned_model,
            }
        )

    def _checkpoints(self, entry: CheckpointsCandidate, param: str) -> list[Candidate]:
        """Return the job's models by step; the last checkpoint has the name of the model that it became."""
        with _as_param(f"{param}.job"):
            job = fine_tuning_service.get_job(self._session, self._project_id, entry.job)
        adapters = adapters_service.list_job_adapters(self._session, self._project_id, job.id)
        final = next((each for each in adapters if each.name == job.fine_tuned_model), None)
        steps = self._steps(job)
        models = {
            each.name: steps[each.name]
            for each in adapters
            if each.name in steps
            and (final is None or each is final or each.storage_key != final.storage_key)
        }
        if not models:
            raise InvalidRequestError(
                f"The job '{job.id}' has no model that can be asked.",
                code="no_checkpoints",
                param=f"{param}.job",
            )
        self._note_training_file(job)
        prefix = f"{entry.name}-" if entry.name else ""
        return [
            Candidate(
                name=f"{prefix}step-{step}",
                type="model",
                model=model,
                job=job.id,
                step=step,
                is_final=model == job.fine_tuned_model,
            )
            for model, step in sorted(models.items(), key=lambda item: item[1])
        ]

    def _external(self, entry: ExternalCandidate, param: str) -> Candidate:
        base_url = allowed_endpoint(self._settings, entry.base_url)
        if base_url is None:
            raise InvalidRequestError(
                "This endpoint is not one that comparisons may ask; TOQUE_EXTERNAL_ENDPOINTS lists them.",
                code="endpoint_not_allowed",
                param=f"{param}.base_url",
            )
        name = entry.name or entry.model
        return Candidate(name=name, type="external", model=entry.model, base_url=base_url)

    def _job(self, adapter: Adapter) -> FineTuningJob | None:
        if adapter.job_id is None:
            return None
        job = fine_tuning_service.get_job(self._session, self._project_id, adapter.job_id)
        self._note_training_file(job)
        return job

    def _steps(self, job: FineTuningJob) -> dict[str, int]:
        """Return the step of each model of the job; its final model has that of the last checkpoint."""
        checkpoints, _ = fine_tuning_service.list_checkpoints(
            self._session, self._project_id, job.id, after=None, limit=1000
        )
        steps = {each.fine_tuned_model_checkpoint: each.step_number for each in checkpoints}
        if job.fine_tuned_model and steps:
            steps[job.fine_tuned_model] = max(steps.values())
        return steps

    def _note_training_file(self, job: FineTuningJob) -> None:
        """Note the job's training file, with which held-out questions will be compared."""
        file = self._session.get_one(File, job.training_file_id)
        if self._context.storage.exists(file.storage_key):
            self._training[file.id] = file
        else:
            self._unchecked.append(file.id)

    def _grader(self, document: GraderDocument, param: str) -> GraderDocument:
        """Return the grader, with its judges under their permanent names."""
        parse_grader(document, param=param)
        return rename_judges(document, self._resolve, param=param)

    def _resolve(self, name: str, param: str) -> str:
        """Return the one model that a name stands for now."""
        with _as_param(param):
            model = find_single(self._session, self._settings, self._project_id, name)
            served = served_models.resolve_model(self._session, self._settings, self._project_id, model)
        return served.name

    def _questions(self, file_id: str, param: str) -> File:
        file = self._file(file_id, param)
        if file.bytes > MAX_FILE_BYTES:
            raise InvalidRequestError(
                f"The file is larger than {MAX_FILE_BYTES:,} bytes.", code="file_too_large", param=param
            )
        return file

    def _file(self, file_id: str, param: str) -> File:
        with _as_param(param):
            return files_service.find_content(self._session, self._context, file_id)


@contextmanager
def _as_param(param: str) -> Generator[None]:
    """Make an error in the block name that field of the request."""
    try:
        yield
    except ToqueError as error:
        error.body.param = param
        raise
