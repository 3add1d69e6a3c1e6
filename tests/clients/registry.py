"""The clients that are tried, and the lines that each needs to reach Toque instead of OpenAI."""

from __future__ import annotations

from dataclasses import dataclass

ENVIRONMENT = """\
```
export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-toque-…
```"""


@dataclass(frozen=True)
class Client:
    """A client, the scripts that use it, and how its users point it at Toque."""

    title: str
    packages: tuple[str, ...]
    """The packages whose versions the page names."""
    environment: str
    """`javascript`, or the NAME of the requirements-NAME.txt that are installed for it."""
    scripts: str
    """A folder of Python scripts or a JavaScript file, under `scripts`."""
    change: str
    """The lines that change, in Markdown."""


CLIENTS = {
    "openai-python": Client(
        "openai-python, newest",
        ("openai",),
        "openai",
        "openai_python",
        f"None in the program:\n\n{ENVIRONMENT}",
    ),
    "openai-python-1.109": Client(
        "openai-python 1.109",
        ("openai",),
        "openai-1.109",
        "openai_python",
        "As above: the scripts are the same.",
    ),
    "openai-js": Client(
        "openai for JavaScript",
        ("openai", "zod"),
        "javascript",
        "javascript/openai.test.mjs",
        f"None in the program:\n\n{ENVIRONMENT}",
    ),
    "ai-sdk": Client(
        "Vercel AI SDK",
        ("ai", "@ai-sdk/openai"),
        "javascript",
        "javascript/ai_sdk.test.mjs",
        "```js\nconst openai = createOpenAI({ baseURL: 'http://127.0.0.1:8000/v1', apiKey: 'sk-toque-…' });\n"
        "generateText({ model: openai('ft:…'), … });\n```\n\n"
        "`openai('…')` asks `/v1/responses`; `openai.chat('…')` and `openai.completion('…')` work as well.",
    ),
    "langchain": Client(
        "LangChain",
        ("langchain", "langchain-openai"),
        "langchain",
        "langchain",
        f"None in the program, if it names the model (`ChatOpenAI(model='ft:…')`):\n\n{ENVIRONMENT}",
    ),
    "instructor": Client(
        "Instructor",
        ("instructor",),
        "instructor",
        "instructor",
        f"None in the program:\n\n{ENVIRONMENT}",
    ),
    "litellm": Client(
        "LiteLLM's SDK",
        ("litellm",),
        "litellm",
        "litellm/sdk.py",
        f"`model='openai/ft:…'`, and\n\n{ENVIRONMENT}\n\n"
        "Never install 1.82.7 or 1.82.8: somebody put malware into these two.",
    ),
    "litellm-proxy": Client(
        "LiteLLM's proxy",
        ("litellm",),
        "litellm",
        "litellm/proxy.py",
        "In its configuration:\n\n```yaml\nmodel_list:\n  - model_name: \"*\"\n    litellm_params:\n"
        "      model: \"openai/*\"\n      api_base: http://127.0.0.1:8000/v1\n      api_key: sk-toque-…\n```",
    ),
    "llama-index": Client(
        "LlamaIndex",
        ("llama-index-core", "llama-index-llms-openai", "llama-index-llms-openai-like"),
        "llama-index",
        "llama_index",
        "```python\nllm = OpenAILike(\n    model=\"ft:…\",\n    api_base=\"http://127.0.0.1:8000/v1\",\n"
        "    api_key=\"sk-toque-…\",\n    is_chat_model=True,\n    is_function_calling_model=True,\n"
        "    context_window=2048,  # the base model's\n)\n```",
    ),
    "lm-eval": Client(
        "lm-evaluation-harness",
        ("lm-eval",),
        "lm-eval",
        "lm_eval",
        "```\nlm_eval run --model local-completions --tasks … --model_args \\\n"
        "  model=ft:…,base_url=http://127.0.0.1:8000/v1/completions,tokenizer=FOLDER_OF_THE_BASE\n```",
    ),
}  # fmt: skip
