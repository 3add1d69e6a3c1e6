"""What to do about a job that has failed."""

from __future__ import annotations

from collections.abc import Mapping

_ADVICE: Mapping[str, str] = {
    "training_diverged": "Create it again with a tenth of the learning rate, or a larger batch size.",
    "out_of_memory": "Create it again with a smaller max_length or lora_rank, with quantization nf4, or on a "
    "worker with more memory.",
    "example_too_long": "Shorten or remove that example, or raise max_length if the base model allows more.",
    "too_few_examples": "Add examples to the file, upload it again, and create the job with the new file.",
    "invalid_training_file": "Open the file's report, mend the lines it lists, and create the job with the "
    "mended file.",
    "parity_failed": "The engine answers differently from what was trained, so the model was not published. "
    "Restart the engine and create the job again; if that fails, send its log to whoever runs the service.",
    "unsupported_base_model": "Choose another base model.",
    "worker_lost": "Its workers died again and again: whoever runs the service finds the reason in their "
    "logs; then create it again.",
    "trainer_died": "The trainer died again and again: whoever runs the service finds the reason in the "
    "worker's log; then create it again.",
    "storage_unusable": "Every process needs the same storage: whoever runs the service mends that; then "
    "create it again.",
    "internal_error": "Whoever runs the service finds the reason in the worker's log; then create it again.",
}
_OTHERWISE = "Mend what the message says, and create the job again."


def advice_on(code: str) -> str:
    """Return what the job's owner can do about a failure with this code."""
    return _ADVICE.get(code, _OTHERWISE)
