#!/usr/bin/env bash
# Makes this machine a node of a Ray cluster with token authentication.
#
#   start_node.sh head PORT          the first machine; the dashboard and the job server listen on its loopback, port 8265
#   start_node.sh worker HOST:PORT   every other machine
#   start_node.sh stop               ends what this script has started on this machine, and no other Ray
#
# Further arguments go to `ray start` (for instance --num-cpus 8 --node-ip-address 10.0.0.4).
set -euo pipefail

# On every node and in the shell of `ray job submit`: clusters started by hand have no authentication without it.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0

# Every process of a node inherits it; `stop` knows them by it.
mark=VIGC_STARTED_NODE

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

marked() {
  local file pid
  for file in $(grep -lsz "^$mark=" /proc/[0-9]*/environ); do
    pid="${file#/proc/}"
    pid="${pid%/environ}"
    [[ "$(stat -c %u "/proc/$pid" 2>/dev/null)" == "$(id -u)" && "$pid" != "$$" ]] && echo "$pid"
  done
  return 0
}

stop_node() {
  local pids
  pids="$(marked)"
  if [[ -z "$pids" ]]; then
    echo "nothing that start_node.sh has started runs here"
    return
  fi
  kill -TERM $pids 2>/dev/null || true
  for _ in $(seq 100); do
    [[ -z "$(marked)" ]] && break
    sleep 0.2
  done
  pids_left="$(marked)"
  [[ -z "$pids_left" ]] || kill -KILL $pids_left 2>/dev/null || true
  echo "stopped $(wc -w <<<"$pids") processes of this node"
}

require_token() {
  if [[ -z "${RAY_AUTH_TOKEN:-}" && ! -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]]; then
    echo "no token: copy the head's ~/.ray/auth_token here (mode 600), or set RAY_AUTH_TOKEN_PATH" >&2
    exit 1
  fi
}

case "${1:-}" in
  head)
    [[ "${2:-}" =~ ^[0-9]+$ ]] || usage
    if [[ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]]; then
      (umask 077 && ray get-auth-token --generate >/dev/null)
    fi
    require_token
    export "$mark=head"
    exec ray start --head --port "$2" --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port 8265 \
      --disable-usage-stats "${@:3}"
    ;;
  worker)
    [[ "${2:-}" == *:* ]] || usage
    require_token
    # Ray itself would try for 20 seconds, and say why not in a traceback.
    PYTHONPATH="$(cd "$(dirname "$0")/../.." && pwd)${PYTHONPATH:+:$PYTHONPATH}" python -m cluster.launch.await_head "$2"
    export "$mark=worker"
    exec ray start --address "$2" --disable-usage-stats "${@:3}"
    ;;
  stop)
    stop_node
    ;;
  *)
    usage
    ;;
esac
