"""`python -m nacre.cli`: the command line without its script."""

from nacre.cli import program

program()
