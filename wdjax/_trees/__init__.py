"""What comes in: leaves and their names, kinds, axes and places, and the checks of arguments.

And what goes out: tables for notebooks.
"""

from typing import Any

PyTree = Any
