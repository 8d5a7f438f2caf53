"""``python -m leanrecon``."""

from leanrecon.cli import main

main()
