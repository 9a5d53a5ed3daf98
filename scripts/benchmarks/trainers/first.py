"""Train in a fresh process and print when it was done: first.py LIBRARY JOB FILE EPOCHS."""

import importlib
import sys
import time

import numpy as np

library, job, file, epochs = sys.argv[1:]
with np.load(file) as arrays:
    data = dict(arrays)
getattr(importlib.import_module(f"with_{library}"), job)(data)(int(epochs))
print(time.time())
