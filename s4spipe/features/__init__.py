"""Networks that compute features of images: one package each, and their common part in `base`."""

from s4spipe.features.base.loading import FOR_DISTANCE, FOR_FID, MODES, load

__all__ = ["FOR_DISTANCE", "FOR_FID", "MODES", "load"]
