#!/usr/bin/env bash
# Promotes a model if a comparison meets the rules, and shows how to roll back:
#   examples/ship.sh ALIAS NEW_MODEL TODAYS_MODEL BASE_MODEL HELDOUT.jsonl "A question"
set -euo pipefail
alias=$1 new=$2 today=$3 base=$4 heldout=$5 question=$6
toque=${TOQUE:-toque}

$toque aliases set "$alias" --model "$today" --reason "what callers use today" >/dev/null

comparison=$($toque compare --file "$heldout" --base-model "$base" --candidate base \
  --candidate "$today" --candidate "$new" --grader exact_match --max-tokens 48 --wait --json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
$toque compare get "$comparison"

$toque promote "$alias" --model "$new" --comparison "$comparison" \
  --rule min_score=0.7 --rule beats=base --reason "passed the gate" --junit gate.xml
echo "shipped: $($toque chat "$alias" "$question" --max-tokens 48)"

# If the new model was a mistake after all, go back.
$toque aliases rollback "$alias" --reason "shown in the example"
$toque aliases history "$alias"
