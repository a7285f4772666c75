#!/usr/bin/env bash
# A sweep on Slurm nodes that share the file system. The words after the script go to ablation.py:
#   sbatch --nodes=4 --gpus-per-node=4 deploy/slurm.sh --table 1 --data-dir /shared/data
# Killed or out of time: the same sbatch goes on. See deploy/README.md.
#SBATCH --job-name=mpcc
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run me with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
# srun gives a step one core unless it is told; since Slurm 22.05 it does not take sbatch's word.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
port="${MPCC_RAY_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"

# A token of this job's own: other users of the nodes cannot join or command the cluster.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
# Sockets and logs on each node's own disk, in a path that is short and this job's.
temp="/tmp/mpcc-$SLURM_JOB_ID"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
gpus="${SLURM_GPUS_ON_NODE:-0}"
common=(--num-cpus="$SRUN_CPUS_PER_TASK" --num-gpus="$gpus" --temp-dir="$temp"
        --disable-usage-stats --block)

srun --nodes=1 --ntasks=1 --nodelist="$head" --export=ALL \
  ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
  "${common[@]}" &
for _ in $(seq 60); do
  ray health-check --address "$address:$port" >/dev/null 2>&1 && break
  sleep 2
done
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" --export=ALL \
    ray start --address="$address:$port" "${common[@]}" &
fi

# Slurm warns two minutes before the end: the trials then write their checkpoints.
trap 'warned=1' TERM INT  # until it is known whom to warn
python tune/ablation.py --address "$address:$port" "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM INT
[ -z "${warned:-}" ] || kill -TERM "$driver"
code=0
wait "$driver" || code=$?
# A trapped signal ends `wait` early: wait for the driver itself.
if kill -0 "$driver" 2>/dev/null; then
  code=0
  wait "$driver" || code=$?
fi
exit "$code"
