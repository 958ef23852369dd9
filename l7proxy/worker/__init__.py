"""A worker: one process, one epoll loop, no privileges. `run` is all that others need."""

from l7proxy.worker.loop import run
from l7proxy.worker.setup import WorkerSetup

__all__ = ["WorkerSetup", "run"]
