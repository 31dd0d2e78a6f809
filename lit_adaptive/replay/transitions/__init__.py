"""Transitions in a ring of tensors."""
