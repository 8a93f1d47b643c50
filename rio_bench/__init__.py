"""rio_bench: a benchmark of image-level and object-level resampling for long-tailed detection."""

__version__ = "0.1.0"
