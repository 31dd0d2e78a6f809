"""Datasets that ship with the package or are built from one file."""
