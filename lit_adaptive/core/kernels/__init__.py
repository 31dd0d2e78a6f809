"""Numba loops behind ``core``, ``samplers`` and ``replay``; each has a slow twin in the tests."""
