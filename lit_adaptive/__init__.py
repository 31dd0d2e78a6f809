"""Adaptive data for PyTorch Lightning.

The sampler draws indices with their probabilities; the datamodule serves the batch with both; the
module returns the loss and a signal per sample; a callback turns the signal into priorities; the
sampler draws again.
"""

__version__ = "0.2.0"
