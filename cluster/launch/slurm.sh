#!/usr/bin/env bash
# A run as a job of Slurm, on one node or several:
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 \
#       cluster/launch/slurm.sh RECIPE.yaml --run-dir /shared/runs/NAME [key=value ...]
#
# Submit it from the project's folder, with `vigc` on the PATH. The same command starts a run or continues it. Before its time is over,
# the job ends the run in order and goes back into the queue, where it continues. `scancel --batch --signal=INT JOB` ends it in
# order for good; `scancel JOB` kills it, which loses no finished work either.
#
#SBATCH --job-name=vigc
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

launch="$SLURM_SUBMIT_DIR/cluster/launch"
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))

start_nodes() {
  local port=$((20000 + SLURM_JOB_ID % 20000)) resources=() address rest
  [[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || resources+=(--num-cpus "$SLURM_CPUS_PER_TASK")
  [[ -z "${SLURM_GPUS_ON_NODE:-}" ]] || resources+=(--num-gpus "$SLURM_GPUS_ON_NODE")
  RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
  export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
  address="$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname -I | cut -d' ' -f1)"
  srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" "$launch/start_node.sh" head "$port" --block \
    --node-ip-address "$address" --dashboard-port $((port + 1)) "${resources[@]}" &
  rest="$(IFS=,; echo "${nodes[*]:1}")"
  export RAY_ADDRESS="$address:$port"
  python -m cluster.launch.await_nodes 1
  srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$rest" "$launch/start_node.sh" worker \
    "$RAY_ADDRESS" --block "${resources[@]}" &
  python -m cluster.launch.await_nodes "${#nodes[@]}"
}

cd "$SLURM_SUBMIT_DIR"
if ((${#nodes[@]} > 1)); then
  start_nodes
fi

source "$launch/driver.sh"
run_driver "$@"
if [[ -n "$terminated" && "$status" == 130 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
