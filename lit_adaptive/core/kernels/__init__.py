"""Numba loops of ``core``, ``samplers`` and ``replay``; tests compare each with a slow twin."""
