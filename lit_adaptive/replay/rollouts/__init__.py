"""Replay of groups of rollouts."""
