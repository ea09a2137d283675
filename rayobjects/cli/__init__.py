"""The command line: `rayobjects serve app.py` and the tools that look into what runs.

    app        the commands and their options
    loading    from a file or module to its classes
    deploying  `rayobjects deploy`: new code for a cluster that runs
    serving    `rayobjects serve`: start, wait, stop
    output     what is printed, and how errors become one line

Ray takes a second to import, so it is imported where it is needed: `--help` and mistakes in the
arguments are answered at once.
"""

from rayobjects.cli.app import main

__all__ = ["main"]
