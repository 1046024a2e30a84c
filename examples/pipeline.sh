#!/usr/bin/env bash
# A data-preparation step: rebalance a folder and act on what came out.
#
#   examples/pipeline.sh DATA WORK
#
# Run it again after an interruption: finished work is not done twice.
set -euo pipefail
data=$1 work=$2
recipe=${RECIPE:-digits-cpu}
balance=${BALANCE:-auto}
mkdir -p "$work"

# JSON goes to stdout, progress and messages to stderr.
rebalance inspect "$data" --json > "$work/inspection.json"
python3 - "$work/inspection.json" <<'PY'
import json, sys
inspection = json.load(open(sys.argv[1]))
if inspection["leaks"]:
    sys.exit(f"{len(inspection['leaks'])} images occur in several splits: mend the data set first")
PY

rebalance fit "$data" --run "$work/run" --recipe "$recipe" --balance "$balance" --json > "$work/fit.json"

code=0
rebalance generate "$work/run" --out "$work/shards" --min-confidence 0.5 --json > "$work/generation.json" || code=$?
case $code in
  0) echo "every image that was asked for is there" ;;
  3) echo "some images or classes are missing; see shortfall and withheld in $work/generation.json" ;;
  *) exit "$code" ;;
esac

rebalance verify "$work/shards" --json > "$work/verification.json"
