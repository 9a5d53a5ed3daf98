"""What a sweep found, and the folder that keeps what is finished if the rest is interrupted."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax._trees.paths import listed

PyTree = Any
Array = np.ndarray[Any, Any]


class SweepResult(NamedTuple):
    """Scores of C configurations, K folds, S seeds at R points of time; lower is better.

    Args:
        hparams: what was swept, a pytree of arrays with C rows.
        val: (C, K, S, R), the metric on the validation part.
        train: (C, K, S, R), the metric on the training part.
        epochs: (R,) integers, the epochs after which it was measured.
        params: (C, K, S, ...) the last parameters, or None if they were not kept.
        repeats: how often each example validates; folds of different repeats overlap.
        tried: the hyperparameters of all that started, where only survivors are scored here; None
            is `hparams`.

    Example:
        >>> val = np.array([[0.5, 0.7], [np.nan, 0.6]])[:, :, None, None]
        >>> result = SweepResult({"weight_decay": np.array([0.0, 0.1])}, val, val, np.array([10]))
        >>> result.finite[..., 0]
        array([[ True,  True],
               [False,  True]])
    """

    hparams: PyTree
    val: Array
    train: Array
    epochs: Array
    params: PyTree = None
    repeats: int = 1
    tried: PyTree = None

    @property
    def finite(self) -> Array:
        """(C, K, S) whether a run's scores are all finite: it has not diverged."""
        scores = np.isfinite(self.val) & np.isfinite(self.train)
        return np.asarray(scores.all(axis=-1))


class Store:
    """A folder with the finished rows of one sweep; without a folder it forgets.

    Every piece is written whole or not at all, so a sweep killed at any moment can go on.

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
        if not isinstance(folder, str | os.PathLike | None):
            raise TypeError(f"`folder` must be a path or None; got {folder!r}.")
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "sweep.json"
        if path.exists():
            found = json.loads(path.read_text())
            changed = [name for name in prints | found if prints.get(name) != found.get(name)]
            if changed:
                raise ValueError(
                    f"`folder` must be empty or hold the same sweep; {str(self.folder)!r} holds "
                    f"one with other {listed(changed)}. Name another folder or remove this one."
                )
        else:
            text = json.dumps(prints, indent=2).encode()
            _write(path, lambda file: file.write(text))

    def load(self) -> list[tuple[Array, list[Array]]]:
        """The finished pieces: their rows and their arrays, as raw bytes."""
        if self.folder is None:
            return []
        return list(_pieces(self.folder))

    def save(self, rows: Array, arrays: list[Array]) -> None:
        """Add a finished piece."""
        if self.folder is None:
            return
        # as bytes, because NumPy's files do not know bfloat16
        raw: dict[str, Any] = {"rows": rows}
        raw |= {str(i): np.frombuffer(x.tobytes(), np.uint8) for i, x in enumerate(arrays)}
        path = self.folder / f"rows-{rows[0]:06d}-{rows[-1]:06d}.npz"
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


def _pieces(folder: Path) -> Iterator[tuple[Array, list[Array]]]:
    for path in sorted(folder.glob("rows-*.npz")):
        try:
            piece = _piece(path)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`folder` must hold finished pieces only; {str(path)!r} is none: {error}. Remove "
                "this file, and its rows are trained again."
            ) from None
        yield piece


def _piece(path: Path) -> tuple[Array, list[Array]]:
    with np.load(path) as file:
        return file["rows"], [file[str(i)] for i in range(len(file.files) - 1)]


def _write(path: Path, fill: Any) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
