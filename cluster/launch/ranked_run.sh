#!/usr/bin/env bash
# A run on several machines, for launchers that start one command on every machine and tell it its rank (SkyPilot and others):
#
#   ranked_run.sh RANK ADDRESSES RECIPE --run-dir DIR [key=value ...]
#
# ADDRESSES: those of all machines, rank 0 first, separated by white space. RAY_AUTH_TOKEN must be set, to the same on all machines.
# Rank 0 starts the head, waits for all others, and runs the driver, whose exit code it returns; the others are nodes until it has ended.
# The same command continues a run.
set -euo pipefail

PORT=6379
START_TIMEOUT_S=600
POLL_S=5

rank="$1"
addresses=($2)
launch="$(cd "$(dirname "$0")" && pwd)"
: "${RAY_AUTH_TOKEN:?set the same token on all machines, such as of: openssl rand -hex 32}"
export RAY_AUTH_MODE=token RAY_ADDRESS="${addresses[0]}:$PORT"
trap '"$launch/start_node.sh" stop' EXIT

answers() {
  timeout 30 ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1
}

if [[ "$rank" == 0 ]]; then
  "$launch/start_node.sh" head "$PORT" --node-ip-address "${addresses[0]}"
  python -m cluster.launch.await_nodes "${#addresses[@]}" "$START_TIMEOUT_S"
  source "$launch/driver.sh"
  run_driver "${@:3}"
  exit "$status"
fi

python -m cluster.launch.await_head "$RAY_ADDRESS" "$START_TIMEOUT_S"
"$launch/start_node.sh" worker "$RAY_ADDRESS" --node-ip-address "${addresses[$rank]}"
while answers; do
  sleep "$POLL_S"
done
