"""One thread a process: tests run side by side, and threads that wait for each other on busy cores cost far more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
