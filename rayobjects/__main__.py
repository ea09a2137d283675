"""`python -m rayobjects`: the command line."""

from rayobjects.cli import main

main()
