"""`python -m loop` is the command `vigc`."""

from loop.cli import main

main()
