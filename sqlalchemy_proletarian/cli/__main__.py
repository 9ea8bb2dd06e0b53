"""Run the command line with ``python -m sqlalchemy_proletarian.cli``."""

from .main import main

main()
