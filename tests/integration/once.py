"""Work for a fixture, done once even where pytest-xdist makes the fixture in several processes."""

import json
import os
import time

PATIENCE = 900  # seconds


def once(tmp_path_factory, name, work):
    """What work(folder) returns, from whichever process comes first; it must be JSON."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return work(tmp_path_factory.mktemp(name))
    folder = tmp_path_factory.getbasetemp().parent / name  # of this run, of all its processes
    result = folder / "result.json"
    try:
        folder.mkdir()
    except FileExistsError:
        return _awaited(result)
    found = None
    try:
        found = work(folder)
    finally:
        part = folder / "part.json"
        part.write_text(json.dumps(found))
        part.replace(result)
    return found


def _awaited(result):
    end = time.monotonic() + PATIENCE
    while not result.exists():
        assert time.monotonic() < end, f"{result} did not come"
        time.sleep(0.2)
    found = json.loads(result.read_text())
    assert found is not None, "it failed in another process of this run, which says why"
    return found
