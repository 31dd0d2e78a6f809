"""Tokenizers and pretrained models by name."""
