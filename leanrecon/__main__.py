"""``python -m leanrecon``."""

from leanrecon.app.cli import main

main()
