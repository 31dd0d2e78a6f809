"""The ``lit-adaptive`` command line."""
