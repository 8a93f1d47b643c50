from __future__ import annotations

from rio_strategies.image_only import ImageOnly
from rio_strategies.object_only import ObjectOnly


class RIO(ImageOnly, ObjectOnly):
    """Resampling at both the image and the object level, jointly (Chang et al., RIO, ICML 2021)."""
