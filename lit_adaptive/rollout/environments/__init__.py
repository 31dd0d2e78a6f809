"""Environments, parallel streams of them, and complete episodes."""
