"""The GitHub Action and the GitLab job, by running their very steps against a service."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml

from tests.support.pipeline import REPOSITORY, Pipeline
from tests.support.service import API_KEY, BASE_MODEL

ALIAS = "house-style:production"
ACTION: dict[str, Any] = yaml.safe_load((REPOSITORY / "ci/github/action.yml").read_text())
WORKFLOW: dict[str, Any] = yaml.safe_load((REPOSITORY / "ci/github/workflow.yml").read_text())
GITLAB: dict[str, Any] = yaml.safe_load((REPOSITORY / "ci/gitlab/toque.yml").read_text())[".toque"]


class GithubRunner:
    """Runs the steps of a composite action: expressions, outputs, and `if: always()`."""

    def __init__(self, pipeline: Pipeline, folder: Path, inputs: dict[str, str]) -> None:
        known = {name: str(each.get("default", "")) for name, each in ACTION["inputs"].items()}
        assert set(inputs) <= set(known)
        self.values = {f"inputs.{name}": value for name, value in (known | inputs).items()}
        # What expressions in defaults look up, where there is no pull request.
        self.values |= {"github.event.pull_request.number": "", "github.token": "token"}
        self.pipeline = pipeline
        self.folder = folder
        self.summary = folder / "summary.md"
        self.steps: dict[str, int] = {}
        self.log = ""

    def run(self) -> int:
        """The action's exit code; 0 if every step succeeded."""
        failed = 0
        for step in ACTION["runs"]["steps"]:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"], "an input would be code there"
            if failed and step.get("if") != "always()":
                continue
            code = self._step(step)
            self.steps[step["name"]] = code
            failed = failed or code
        return failed

    def output(self, name: str) -> str:
        """Of the action."""
        return self._filled(ACTION["outputs"][name]["value"])

    def _step(self, step: dict[str, Any]) -> int:
        outputs = self.folder / f"outputs-{step['name']}"
        outputs.touch()
        temporary = self.folder / "temp"
        temporary.mkdir(exist_ok=True)
        environment = {name: self._filled(str(value)) for name, value in step.get("env", {}).items()}
        environment |= {
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_REPOSITORY": "kitchen/soups",
            "GITHUB_SHA": "c0ffee",
            "GITHUB_RUN_ID": "7",
            "RUNNER_TEMP": str(temporary),
        }
        done = self.pipeline.run(step["run"], environment)
        self.log += done.stdout + done.stderr
        for line in outputs.read_text().splitlines():
            name, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{name}"] = value
        return done.returncode

    def _filled(self, text: str) -> str:
        filled = re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: self.values.get(found[1], ""), text)
        return filled if filled == text else self._filled(filled)


def test_a_changed_dataset_on_github(pipeline: Pipeline, tmp_path: Path) -> None:
    inputs = {
        "base-url": pipeline.base_url,
        "api-key": API_KEY,
        "training-file": "data/training.jsonl",
        "heldout-file": "data/heldout.jsonl",
        "regression-file": "data/general.jsonl",
        "max-tokens": "32",
        "alias": ALIAS,
        "candidates": "base\nfew-shot=4:data/training.jsonl\n",
        "rules": "min_score=0.8\nbeats=base\nbeats=prompted:0.1\nbeats=current\nmax_regression=0.05\n",
    }

    def run(name: str, **changes: str) -> tuple[GithubRunner, int]:
        folder = tmp_path / name
        folder.mkdir()
        runner = GithubRunner(
            pipeline, folder, inputs | {key.replace("_", "-"): changes[key] for key in changes}
        )
        return runner, runner.run()

    # A pull request: the gate says what it would do, and a comment tells it.
    proposed, code = run("proposed", promote="false", pull_request="42")
    assert code == 0, proposed.log
    assert pipeline.toque("aliases", "list") == []
    comment_file = proposed.output("comment")
    sent = ["pr", "comment", "42", "--repo", "kitchen/soups", "--body-file", comment_file]
    assert pipeline.sent("gh") == sent
    comment = Path(comment_file).read_text()
    assert proposed.summary.read_text() == comment
    assert f"`{proposed.output('model')}` passes the gate" in comment
    assert "this was a dry run" in comment
    assert "| base | 0.0 % |" in comment
    (pipeline.folder / "gh").unlink()

    # The main branch: it is promoted.
    merged, code = run("merged")
    assert code == 0, merged.log
    alias = pipeline.toque("aliases", "get", ALIAS)
    assert (alias["model"], alias["version"]) == (merged.output("model"), 1)
    assert merged.output("passed") == "true"
    assert pipeline.toque("compare", "get", merged.output("comparison"))["max_tokens"] == 32
    assert not (pipeline.folder / "gh").exists(), "there is nothing to comment on"
    [change] = pipeline.toque("aliases", "history", ALIAS)
    assert change["comparison"] == merged.output("comparison")  # type: ignore[index]
    assert change["reason"] == "kitchen/soups c0ffee, run 7"  # type: ignore[index]

    # Another that is no better than the one in production.
    refused, code = run("refused", pull_request="43")
    assert code == 5, refused.log
    assert refused.steps["Gate and promote"] == 5
    assert (refused.steps["Comment"], pipeline.sent("gh")[2]) == (0, "43")
    assert refused.output("passed") == "false"
    [suite] = JUnitXml.fromfile(refused.output("report"))
    assert [(case.name, bool(case.result)) for case in suite] == [
        ("min_score", False),
        ("beats:base", False),
        ("beats:prompted", False),
        ("beats:current", True),
        ("max_regression", False),
    ]
    assert pipeline.toque("aliases", "get", ALIAS)["version"] == 1

    # A broken line stops it before anything is trained.
    (pipeline.workspace / "data/training.jsonl").write_text('{"messages": []}\n')
    broken, code = run("broken")
    assert code == 1
    assert broken.steps == {"Install": 0, "Check": 1, "Comment": 0}
    assert "Line 1" in broken.log


def test_a_changed_dataset_on_gitlab(pipeline: Pipeline) -> None:
    predefined = {
        "TOQUE_BASE_URL": pipeline.base_url,
        "TOQUE_API_KEY": API_KEY,
        "TOQUE_ALIAS": ALIAS,
        "TOQUE_GITLAB_TOKEN": "token",
        "CI_API_V4_URL": "https://gitlab.example/api/v4",
        "CI_PROJECT_ID": "5",
        "CI_PROJECT_PATH": "kitchen/soups",
        "CI_COMMIT_SHA": secrets.token_hex(4),
        "CI_PIPELINE_ID": "9",
        "CI_DEFAULT_BRANCH": "main",
        "CI_COMMIT_BRANCH": "",
        "CI_MERGE_REQUEST_IID": "",
    }

    defaults: dict[str, str] = GITLAB["variables"]

    def run(**variables: str) -> tuple[int, str]:
        environment = defaults | predefined | variables
        done = pipeline.run("\n".join(GITLAB["before_script"] + GITLAB["script"]), environment)
        after = pipeline.run("\n".join(GITLAB["after_script"]), environment)
        assert after.returncode == 0, after.stderr
        return done.returncode, done.stdout + done.stderr

    code, log = run(CI_MERGE_REQUEST_IID="3")
    assert code == 0, log
    assert pipeline.toque("aliases", "list") == []
    sent = pipeline.sent("curl")
    assert "body=<toque/comment.md" in sent
    assert sent[-1] == "https://gitlab.example/api/v4/projects/5/merge_requests/3/notes"
    (pipeline.folder / "curl").unlink()

    code, log = run(CI_COMMIT_BRANCH="main")
    assert code == 0, log
    alias = pipeline.toque("aliases", "get", ALIAS)
    assert str(alias["model"]).startswith(f"ft:{BASE_MODEL}:")
    assert not (pipeline.folder / "curl").exists()

    more = {
        "TOQUE_REGRESSION_FILE": "data/general.jsonl",
        "TOQUE_MAX_TOKENS": "32",
        "TOQUE_RULES": defaults["TOQUE_RULES"] + " max_regression=0.05",
    }
    code, log = run(CI_COMMIT_BRANCH="main", **more)
    assert code == 5, log
    comparison = json.loads((pipeline.workspace / "toque/comparison.json").read_text())
    assert comparison["max_tokens"] == 32
    for path in GITLAB["artifacts"]["paths"]:
        assert (pipeline.workspace / path).is_file()
    [suite] = JUnitXml.fromfile(str(pipeline.workspace / GITLAB["artifacts"]["reports"]["junit"]))
    assert [(case.name, bool(case.result)) for case in suite] == [
        ("beats:base", False),
        ("beats:current", True),
        ("max_regression", False),
    ]
    assert pipeline.toque("aliases", "get", ALIAS)["version"] == 1


@pytest.mark.parametrize(
    ("script", "variable", "setting"),
    [
        (ACTION["runs"]["steps"][0]["run"], "PACKAGE", "the input 'package'"),
        (GITLAB["before_script"][0], "TOQUE_PACKAGE", "the variable TOQUE_PACKAGE"),
    ],
    ids=["github", "gitlab"],
)
def test_only_what_was_named_is_installed(script: str, variable: str, setting: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    bash = shutil.which("bash")
    assert bash is not None

    def add(name: str) -> None:
        (programs / name).write_text(f'#!{bash}\necho "{name} $*"\n')
        (programs / name).chmod(0o755)

    def run(package: str) -> tuple[int, str]:
        done = subprocess.run(
            [bash, "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            env={"PATH": str(programs), variable: package},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    add("pip")
    code, log = run("")
    assert code == 1
    assert f"Set {setting} to what pip should install, such as git+https://" in log
    assert "pip install" not in log

    code, log = run("./toque-1.0-py3-none-any.whl")
    assert (code, log) == (0, "pip install ./toque-1.0-py3-none-any.whl\n")

    add("toque")
    code, log = run("")
    assert (code, log) == (0, f"{programs / 'toque'}\n")


def test_no_package_is_assumed() -> None:
    assert ACTION["inputs"]["package"]["default"] == ""
    assert GITLAB["variables"]["TOQUE_PACKAGE"] == ""


def test_the_example_workflow_gives_the_action_what_it_takes() -> None:
    [job] = WORKFLOW["jobs"].values()
    [action] = [step for step in job["steps"] if "/ci/github@" in step["uses"]]
    assert set(action["with"]) <= set(ACTION["inputs"])
    required = {name for name, each in ACTION["inputs"].items() if each.get("required")}
    assert required <= set(action["with"])
    assert set(ACTION["outputs"]) == {"model", "comparison", "passed", "report", "comment"}
