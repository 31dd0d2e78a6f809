"""``lit-adaptive``, also as ``python -m lit_adaptive``."""

import sys


def main() -> None:
    """Run the command line; ``doctor`` before packages are imported that may be broken."""
    if sys.argv[1:] == ["doctor"]:
        from lit_adaptive.cli.doctor import doctor

        doctor([])
    else:
        from lit_adaptive.cli.main import main as run

        run()


if __name__ == "__main__":
    main()
