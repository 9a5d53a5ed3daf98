"""What comes in: leaves and their names, kinds, axes and places, and the checks of arguments."""

from typing import Any

PyTree = Any
