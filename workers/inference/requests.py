"""What OpenAI's API means by a request where vLLM means something else, or refuses it."""

from __future__ import annotations

import functools
from typing import Any, cast


def read_as_openai() -> None:
    """Correct vLLM in this process."""
    _constrain_demanded_calls()
    _allow_several_greedy_answers()
    _tell_aborted_responses()


def _constrain_demanded_calls() -> None:
    """Hold the arguments of calls that a request demands to the function's schema, `strict` or not.

    vLLM does so with some of its tool parsers only. With the others, `hermes` among them, any JSON would do,
    and a model that was not trained for calls writes anything. What a model calls of its own accord (`auto`)
    stays as vLLM has it: unconstrained unless a function is `strict`. A grammar forces the arguments into the
    schema's order, and a fine-tuned model may have learnt another.
    """
    from vllm.parser.abstract_parser import DelegatingParser  # noqa: PLC0415
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel  # noqa: PLC0415

    parsers = cast(Any, DelegatingParser)
    constrain = parsers._apply_structural_tag

    def constrain_by_choice(parser: Any, request: Any) -> Any:
        level = ToolStrictLevel.AUTO
        if request.tool_choice == "auto" and request.extract_structured_outputs() is not None:
            level = ToolStrictLevel.FUNCTION  # otherwise `response_format` would make calls impossible
        elif request.tool_choice not in ("auto", "none", None):
            level = ToolStrictLevel.PARAMETER
        parser.tool_strict_level = max(parser.tool_strict_level, level)
        return constrain(parser, request)

    parsers._apply_structural_tag = constrain_by_choice


def _allow_several_greedy_answers() -> None:
    """Let `n` be more than 1 at a temperature of 0; vLLM refuses it since the answers are equal.

    `top_k: 1` would be no way around: of tokens with equal logits, which bfloat16 makes common, it draws one.
    """
    from vllm import SamplingParams  # noqa: PLC0415

    def allow(_parameters: SamplingParams) -> None:
        """Called for each request at a temperature of 0, once other parameters are set for it."""

    cast(Any, SamplingParams)._verify_greedy_sampling = allow


def _tell_aborted_responses() -> None:
    """Let a response say that it was `cancelled` where the engine aborted it, as it does when it stops.

    vLLM calls it `completed`, whole or at the end of a stream, however little of it there is.
    """
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse  # noqa: PLC0415
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses  # noqa: PLC0415

    serving = cast(Any, OpenAIServingResponses)
    respond = serving.responses_full_generator

    @functools.wraps(respond)
    async def respond_truly(
        self: Any, request: Any, sampling: Any, results: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        response = await respond(self, request, sampling, results, context, *args, **kwargs)
        outputs = getattr(getattr(context, "last_output", None), "outputs", None)
        if isinstance(response, ResponsesResponse) and outputs and outputs[0].finish_reason == "abort":
            response.status = "cancelled"
        return response

    serving.responses_full_generator = respond_truly
