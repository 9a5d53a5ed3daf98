"""The folder that keeps what is finished of a sweep if the rest is interrupted."""

import contextlib
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wdjax._trees import checks
from wdjax._trees.paths import listed

Array = np.ndarray[Any, Any]

_TRIES = 10  # to write a file while other processes begin


class Store:
    """A folder with the finished rows of one sweep; without a folder it forgets.

    Every piece is written whole or not at all, so a sweep killed at any moment can go on; and its
    name has the digest of the sweep, so that no other takes it.

    Args:
        folder: where; made if needed.
        prints: name -> digest, what identifies the sweep.

    Raises:
        ValueError: the folder holds another sweep.

    Example:
        >>> Store(None, {}).load()
        []
    """

    def __init__(self, folder: str | os.PathLike[str] | None, prints: dict[str, str]) -> None:
        is_path = isinstance(folder, str | os.PathLike) and bool(os.fspath(folder))
        fits = is_path or folder is None
        checks.must("folder", fits, "be a path or None", repr(folder), error=TypeError)
        self.folder = None if folder is None else Path(folder)
        self.name = _digest(json.dumps(prints, sort_keys=True))
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (".rows-*.part", ".sweep.json.*.part"):  # of a process that was killed
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()
        record = json.dumps(prints, indent=2).encode()
        path = self.folder / "sweep.json"
        if not path.exists():
            _write(path, lambda file: file.write(record), move=_claim)
        _check_same(path, prints)

    def load(self) -> list[tuple[Array, list[Array]]]:
        """The finished pieces: their rows and their arrays, as raw bytes."""
        if self.folder is None:
            return []
        found = map(_piece, sorted(self.folder.glob(f"rows-{self.name}-*.npz")))
        return [piece for piece in found if piece is not None]

    def save(self, rows: Array, arrays: list[Array]) -> None:
        """Add a finished piece."""
        if self.folder is None:
            return
        # as bytes, because NumPy's files do not know bfloat16
        raw: dict[str, Any] = {"rows": rows, "arrays": len(arrays)}
        raw |= {str(i): np.frombuffer(x.tobytes(), np.uint8) for i, x in enumerate(arrays)}
        path = self.folder / f"rows-{self.name}-{rows[0]:06d}-{rows[-1]:06d}.npz"
        _write(path, lambda file: np.savez(file, **raw))


def fingerprints(**parts: Any) -> dict[str, str]:
    """Digest what identifies a sweep, part by part, so that a difference can be named.

    Args:
        parts: name -> text, or a pytree of arrays.

    Returns:
        name -> digest.

    Example:
        >>> fingerprints(data=np.zeros(3)) == fingerprints(data=np.ones(3))
        False
    """
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(part, str):
        digest.update(part.encode())
    else:
        leaves, tree = jax.tree.flatten(part)
        digest.update(str(tree).encode())
        for leaf in leaves:
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _check_same(path: Path, prints: dict[str, str]) -> None:
    try:
        found = dict(json.loads(path.read_text()))
    except (TypeError, ValueError):
        raise ValueError(
            f"`folder` must hold the record of its sweep; {str(path)!r} is damaged. Remove this "
            "file: the finished rows of this sweep are kept."
        ) from None
    changed = [name for name in prints | found if prints.get(name) != found.get(name)]
    got = f"{str(path.parent)!r} with other {listed(changed)}"
    advice = "Name another folder or remove this one."
    checks.must("folder", not changed, "be empty or hold the same sweep", got, advice)


def _piece(path: Path) -> tuple[Array, list[Array]] | None:
    """Read a piece; set a damaged one aside, so that its rows are trained again."""
    try:
        with path.open("rb") as file, np.load(file) as held:
            if held.zip.testzip() is not None:
                raise ValueError("its checksum does not match")
            return held["rows"], [held[str(i)] for i in range(held["arrays"])]
    except Exception as error:  # whatever zipfile and NumPy make of garbage
        aside = path.with_suffix(".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process has done so
            path.replace(aside)
        warnings.warn(
            f"`folder` has a damaged file, {str(path)!r}: {error}. It is now {aside.name!r}, which "
            "you may remove; its rows are trained again.",
            stacklevel=5,
        )
        return None


def _write(path: Path, fill: Any, move: Callable[[Path, Path], object] = os.replace) -> None:
    """Write a file so that it is there whole or not at all, and nothing else is."""
    for _ in range(_TRIES):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            move(temporary, path)
            return
        except FileNotFoundError:  # another process has just begun, and tidied up
            continue
        finally:
            temporary.unlink(missing_ok=True)
    raise FileNotFoundError(
        f"{str(path)!r} could not be written: its folder is gone. Keep it during the sweep."
    )


def _claim(temporary: Path, path: Path) -> None:
    """Give a file its name if it is free: of two sweeps that begin at once, one is refused."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(temporary.read_bytes())
