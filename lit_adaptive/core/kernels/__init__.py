"""Fast implementations of what ``core``, ``samplers`` and ``replay`` compute.

Numba loops for the CPU, torch operations for a GPU; tests compare each with a slow twin.
"""
