"""``python -m lit_adaptive`` runs ``lit-adaptive``."""

from lit_adaptive.cli.main import main

if __name__ == "__main__":
    main()
