"""What a teacher that sees images is shown of them: JPEG of a bounded size."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

from actors.images import BadImageError, FileSource, ImageSource
from policies.chat import ChatImage

MAX_BYTES = 3_900_000
"""Endpoints take images of up to 5 MiB in base64, which is a third longer."""


class Sight:
    """Encodes the images of a source, and counts what it encoded."""

    def __init__(self, source: ImageSource, max_side: int, quality: int) -> None:
        """Args:
        source: opens the images.
        max_side: longest side in pixels; larger images are scaled down.
        quality: of the JPEG, 1 to 95.
        """
        self.source = source
        self._max_side, self._quality = max_side, quality
        self.num_images = self.num_bytes = 0

    def digest(self, image_id: str) -> str:
        """A digest of the image's file; the id where images have no files, which then determines the image.

        Raises:
            BadImageError: the file cannot be read.
        """
        data = self.source.read_file(image_id)[1] if isinstance(self.source, FileSource) else image_id.encode()
        return hashlib.sha256(data).hexdigest()[:16]

    def look(self, image_id: str) -> ChatImage:
        """An image as the teacher sees it, the same bytes each time.

        Raises:
            BadImageError: it cannot be read, or has too many bytes even so.
        """
        image = self.source.open(image_id)
        image.thumbnail((self._max_side, self._max_side), Image.Resampling.LANCZOS)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=self._quality)
        data = encoded.getvalue()
        if len(data) > MAX_BYTES:
            raise BadImageError(f"{image_id}: has {len(data)} bytes as the teacher sees it, more than {MAX_BYTES}; lower --image-side")
        self.num_images += 1
        self.num_bytes += len(data)
        return ChatImage(data)
