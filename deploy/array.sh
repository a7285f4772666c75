#!/usr/bin/env bash
# A sweep as an array of Slurm jobs, without Ray: each job trains missing trials one after the other
# until none is left that nobody trains. The words after the script go to ablation.py:
#   sbatch --array=1-50%10 --gpus-per-task=1 deploy/array.sh --grid esteps,eta_p --out runs/digits
# Killed or out of time: the same sbatch goes on. See deploy/README.md.
#SBATCH --job-name=mpcc
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
export PATH="$PWD/.venv/bin:$PATH"

code=0
while [ "$code" -eq 0 ] || [ "$code" -eq 3 ]; do # 3: that trial failed, the others go on.
  code=0
  python tune/ablation.py "$@" --next &
  trial=$!
  # Slurm warns two minutes before the end: the trial then writes its checkpoint.
  trap 'kill -TERM "$trial"' TERM INT
  wait "$trial" || code=$?
  while kill -0 "$trial" 2>/dev/null; do # A trapped signal ends `wait` early.
    code=0
    wait "$trial" || code=$?
  done
done
[ "$code" -eq 4 ] || exit "$code" # 4: nothing is left to do.
