#!/usr/bin/env bash
# Sourced by the scripts that run a driver as a child: `run_driver ARGUMENTS` is `vigc run ARGUMENTS --resume`, to which signals to the
# script are passed on. Sets `status`, the driver's exit code, and `terminated`, which is not empty if the script was sent SIGTERM.

run_driver() {
  status=0 terminated=
  vigc run "$@" --resume &
  driver=$!
  trap 'terminated=1; kill -TERM $driver' TERM
  trap 'kill -INT $driver' INT
  # `wait` returns early when a signal arrives; then the driver is still closing the run.
  wait $driver || status=$?
  while kill -0 $driver 2>/dev/null; do
    status=0
    wait $driver || status=$?
  done
}
