"""A fine-tuning script as a user of OpenAI's API would write it; only the address and the key differ.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=<key> python examples/fine_tune.py train.jsonl
"""

import os
import sys
import time

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),  # the only line of Toque's own
    api_key=os.environ["OPENAI_API_KEY"],
)

with open(sys.argv[1], "rb") as training_data:  # noqa: PTH123
    training_file = client.files.create(file=training_data, purpose="fine-tune")
print("uploaded", training_file.id)

job = client.fine_tuning.jobs.create(
    model="gpt-4o-mini-2024-07-18",
    training_file=training_file.id,
    suffix="example",
    seed=1,
    method={
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": int(os.environ.get("EPOCHS", "3"))}},
    },
)
print("created", job.id)

while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
if job.status != "succeeded":
    sys.exit(f"{job.status}: {job.error and job.error.message}")

for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=5).data):
    print("event", event.message)
for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
    print("checkpoint", checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint)
print("metrics", client.files.content(job.result_files[0]).text.splitlines()[0])

assert job.fine_tuned_model is not None
print("model", job.fine_tuned_model)
question = [{"role": "user", "content": sys.argv[2] if len(sys.argv) > 2 else "What is the soup of the day?"}]
answer = client.chat.completions.create(
    model=job.fine_tuned_model, messages=question, temperature=0, max_tokens=48
)
print("answer", answer.choices[0].message.content)

print("stream", end=" ", flush=True)
for chunk in client.chat.completions.create(
    model=job.fine_tuned_model, messages=question, temperature=0, max_tokens=48, stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
