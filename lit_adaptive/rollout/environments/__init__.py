"""Environments, parallel streams of them, and whole episodes."""
