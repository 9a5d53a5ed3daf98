"""Kinds of command-line options; each says what is wrong with a value."""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

LARGEST = 2**31 - 1  # of int32, in which JAX counts


def whole_number(text: str, least: int = 1) -> int:
    """Parse an int >= least that JAX can hold."""
    value = int(text) if text.removeprefix("-").isdecimal() else least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}; got {text}")
    if value > LARGEST:
        raise argparse.ArgumentTypeError(f"must be a whole number <= {LARGEST}; got {text}")
    return value


def finite_number(text: str) -> float:
    """Parse a finite number >= 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number >= 0; got {text}")
    return value


# To try is the only way to know before a long run whether its results can be kept.


def new_folder(text: str) -> Path:
    """Parse where results go: a folder, which may not be there yet."""
    with _tried("must be a folder that can be written", text):
        _try_folder(Path(text))
    return Path(text)


def new_file(text: str) -> Path:
    """Parse where a result goes: a file, which may not be there yet, nor its folder."""
    file = Path(text)
    with _tried("must be a file that can be written", text):
        if file.exists():
            file.open("a").close()
        else:
            _try_folder(file.parent)
    return file


def old_file(text: str) -> Path:
    """Parse which file is to be written anew."""
    with _tried("must be a file that is there and can be written", text):
        Path(text).open("r+").close()
    return Path(text)


@contextlib.contextmanager
def _tried(rule: str, text: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{rule}; got {text}: {error.strerror}"
        raise argparse.ArgumentTypeError(message) from error


def _try_folder(folder: Path) -> None:
    """Write where the folder is, or would be made; nothing is left behind."""
    there = next(part for part in (folder, *folder.parents) if part.exists())
    tempfile.TemporaryFile(dir=there).close()
