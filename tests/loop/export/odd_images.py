"""Image sources for exports in several processes, and an export that a test can kill. It imports little, as every process does so."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loop.export import export, pictures, rows
from loop.store.run_store import Store


@dataclass(frozen=True)
class OddImages:
    """Small images. Opening one whose id begins with `slow` takes minutes, and with `deadly` ends the process."""

    def image_ids(self) -> list[str]:
        return []

    def open(self, image_id: str) -> Image.Image:
        if image_id.startswith("slow"):
            time.sleep(300)
        if image_id.startswith("deadly"):
            os._exit(1)
        return Image.new("RGB", (4, 4))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    pictures._NUM_READ_HERE, rows._ROWS_PER_BATCH = 1, 1
    export(Store.open(sys.argv[1]), "all", "llava", Path(sys.argv[2]), OddImages(), workers=2)
