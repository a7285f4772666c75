#!/usr/bin/env bash
# Everything that only a GPU can show, in at most twelve minutes: the tests marked gpu, the time of an
# iteration beside its aim, what limits it, and one short trial on MNIST.
# Needs torch, torchvision, scikit-learn and pytest; neither Ray nor MLflow. MNIST is taken from
# MPCC_DATA_DIR, else from runs/data; without it that trial is left out.
#
#     bash benchmarks/gpu.sh [--dry-run] [FOLDER]           results go to FOLDER (default: runs/gpu)
#
# --dry-run takes the same steps on the CPU with tiny networks: its figures say nothing.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
dry=
[ "${1:-}" = --dry-run ] && { dry=--dry-run; shift; }
OUT=${1:-runs/gpu}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1
[ -n "${MPCC_DATA_DIR:-}" ] || [ ! -d runs/data ] || export MPCC_DATA_DIR=$PWD/runs/data
failed=0

step() { # step SECONDS NAME COMMAND...
    local seconds=$1 name=$2 status
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$seconds" "$@" 2>&1 | tee "$OUT/$name.txt"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "== $name: exit $status"; failed=1; }
}

trial() { # trial SECONDS NAME OPTION...
    step "$1" "$2" "$PYTHON" -m mpcc --out "$OUT/$2" "${@:3}"
    grep recorded_iteration "$OUT/$2/provenance.json"
}

mapfile -t tests < <(grep -l 'pytest\.mark\.gpu' tests/test_*.py)
if [ -n "$dry" ]; then
    echo "dry run on the CPU: the figures below say nothing"
else
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || failed=1
fi
step 180 tests "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "${tests[@]}"
step 240 iterations "$PYTHON" benchmarks/training_step.py --only GPU --rounds 3 \
    --profile mnist cifar10 $dry
if [ -n "$dry" ]; then
    trial 100 tiny --preset tiny --device cpu
elif [ -n "${MPCC_DATA_DIR:-}" ]; then
    trial 300 mnist --preset mnist --set iterations=1000 eval_every=500 --device cuda
fi
exit "$failed"
