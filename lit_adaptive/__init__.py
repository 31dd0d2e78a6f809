"""Adaptive data for PyTorch Lightning.

The sampler draws; the datamodule serves, with index and probability; the module returns the loss
and a per-sample signal; a callback turns the signal into priorities; the sampler draws again.
"""

__version__ = "0.1.0"
