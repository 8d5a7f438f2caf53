"""Reconstruct the images a person saw from their fMRI, in a stated memory budget, on the machine you have.

``leanrecon.run(recipe, study=FOLDER)`` runs a study; ``leanrecon.open(FOLDER)`` reads its arrays, images and figures.
``%load_ext leanrecon`` gives notebooks the magic ``%leanrecon``.
"""

from leanrecon.api import open, plan, run

__version__ = "0.1.0"
__all__ = ["__version__", "open", "plan", "run"]


def load_ipython_extension(shell: object) -> None:
    """Give notebooks the line magic ``%leanrecon COMMAND …``."""
    from leanrecon.app.notebook import load_ipython_extension as load

    load(shell)
