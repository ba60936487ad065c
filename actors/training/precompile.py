"""`python -m actors.training.precompile`: build what DeepSpeed compiles on first use, so that no training run waits for it."""

from __future__ import annotations

import time

from actors.training.distributed import prepare_deepspeed


def main() -> None:
    started = time.perf_counter()
    prepare_deepspeed()
    print(f"DeepSpeed is ready ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
