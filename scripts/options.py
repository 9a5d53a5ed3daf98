"""Kinds of command-line options; each says what is wrong with a value."""

import argparse
from pathlib import Path


def whole_number(text: str, least: int = 1) -> int:
    """Parse an int >= least."""
    value = int(text) if text.removeprefix("-").isdecimal() else least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}; got {text}")
    return value


def finite_number(text: str) -> float:
    """Parse a finite number >= 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number >= 0; got {text}")
    return value


def new_folder(text: str) -> Path:
    """Parse where results go: a folder, which may not be there yet."""
    folder = Path(text)
    files = [str(part) for part in (folder, *folder.parents) if part.exists() and not part.is_dir()]
    if files:
        raise argparse.ArgumentTypeError(f"must be a folder; {files[0]} is a file")
    return folder
