"""Equations and the data structures under them: pure, without Lightning, one file per idea."""
