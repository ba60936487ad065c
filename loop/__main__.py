"""`python -m loop` runs the `vigc` command."""

from loop.cli import main

main()
