#!/usr/bin/env bash
# Everything that only a GPU can show, in at most eight minutes: the tests marked gpu, the time of an
# iteration, what limits it, and one short trial on MNIST where MPCC_DATA_DIR holds it.
# Needs torch, torchvision, scikit-learn and pytest; neither Ray nor MLflow.
#
#     MPCC_DATA_DIR=DIR bash benchmarks/gpu.sh [FOLDER]     results go to FOLDER (default: runs/gpu)
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-runs/gpu}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1
failed=0

step() { # step SECONDS NAME COMMAND...
    local seconds=$1 name=$2 status
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$seconds" "$@" 2>&1 | tee "$OUT/$name.txt"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "== $name: exit $status"; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || failed=1
step 120 tests "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/test_cuda_graph.py
step 200 iterations "$PYTHON" benchmarks/training_step.py --only GPU --rounds 3
step 60 profile "$PYTHON" benchmarks/training_step.py --profile mnist
if [ -n "${MPCC_DATA_DIR:-}" ]; then
    step 100 mnist "$PYTHON" -m mpcc --preset mnist --set iterations=4000 eval_every=2000 \
        --device cuda --out "$OUT/mnist"
fi
exit "$failed"
