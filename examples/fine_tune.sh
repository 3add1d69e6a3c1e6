#!/usr/bin/env bash
# The same as fine_tune.py, with curl: OPENAI_BASE_URL=… OPENAI_API_KEY=… examples/fine_tune.sh train.jsonl "A question?"
set -euo pipefail

url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
call() { curl --silent --show-error --fail-with-body --header "Authorization: Bearer $OPENAI_API_KEY" "$@"; }
field() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }

file=$(call "$url/files" --form purpose=fine-tune --form "file=@$1" | field '["id"]')
echo "uploaded $file"

job=$(call "$url/fine_tuning/jobs" --json '{
  "model": "gpt-4o-mini-2024-07-18", "training_file": "'"$file"'", "suffix": "example", "seed": 1,
  "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": '"${EPOCHS:-3}"'}}}
}' | field '["id"]')
echo "created $job"

while :; do
  status=$(call "$url/fine_tuning/jobs/$job" | field '["status"]')
  case $status in
    succeeded) break ;;
    failed | cancelled) call "$url/fine_tuning/jobs/$job" | field '["error"]' >&2; exit 1 ;;
  esac
  sleep 2
done

call "$url/fine_tuning/jobs/$job/events?limit=1" | field '["data"][0]["message"]'
call "$url/fine_tuning/jobs/$job/checkpoints" | field '["data"][0]["fine_tuned_model_checkpoint"]'
model=$(call "$url/fine_tuning/jobs/$job" | field '["fine_tuned_model"]')
echo "model $model"

ask='{"model": "'"$model"'", "messages": [{"role": "user", "content": "'"${2:-What is the soup of the day?}"'"}], "temperature": 0, "max_tokens": 48'
call "$url/chat/completions" --json "$ask}" | field '["choices"][0]["message"]["content"]'
call --no-buffer "$url/chat/completions" --json "$ask, \"stream\": true}" | tail -n 3
