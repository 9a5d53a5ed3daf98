"""Sections of our docstrings under the names that the site's reader of docstrings knows."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """What stands under `Example:` ran, and is shown as code; fields are no parameters."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the sections of one docstring."""
        names = {"Example": "Examples"}
        if isinstance(obj, griffe.Class) and "NamedTuple" in map(str, obj.bases):
            names["Args"] = "Attributes"
        if obj.docstring:
            for old, new in names.items():
                obj.docstring.value = re.sub(
                    f"^{old}:$", f"{new}:", obj.docstring.value, flags=re.MULTILINE
                )
