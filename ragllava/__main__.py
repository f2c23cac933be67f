"""`python -m ragllava` is the command line."""

from ragllava.cli.main import main

main()
