"""The ``lit-adaptive`` command line."""

from lit_adaptive.cli.main import AdaptiveCLI

__all__ = ["AdaptiveCLI"]
