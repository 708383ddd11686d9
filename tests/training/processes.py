"""``tightframe`` commands in processes of their own, which can be killed at a chosen moment."""

import multiprocessing
import os
import pkgutil
import signal
import socket
import sys

# Children are forked from a server that has imported all this and computed nothing, so each starts at once.
PRELOAD = ["tests.training.processes", "lightning.pytorch", "sklearn.datasets", "tightframe.cli", "tightframe.training"]


def preloaded():
    """Return a multiprocessing context whose processes have imported the package already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def run(arguments, folder, kill=None, report=False):
    """Run a command to its end in another process, and return its exit code.

    Args:
        arguments: after ``tightframe``.
        folder: receives what it printed.
        kill: function to call first in that process, which arranges its end.
        report: whether to write the report too, which takes longer than a small training.
    """
    process = preloaded().Process(target=_main, args=(arguments, folder / "output.txt", kill, report))
    process.start()
    process.join()
    return process.exitcode


def on_two_ranks(function, *arguments, ranks=2, seconds=120):
    """Call a function of the rank and more in two processes or more, as under ``torchrun --nproc-per-node 2``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    starts = [(function, rank, ranks, port, *arguments) for rank in range(ranks)]
    processes = [preloaded().Process(target=_rank, args=start) for start in starts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=seconds)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks


def _rank(function, rank, ranks, port, *arguments):
    import torch

    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    names |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    function(rank, *arguments)


def _main(arguments, output, kill, report):
    import torch

    from tightframe import cli
    from tightframe.cli import report as command

    torch.set_num_threads(1)
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        if kill is not None:
            kill()
        if not report:
            command.run = lambda out: None
        cli.main(arguments)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class AtStep:
    """Die before the gradient of a step, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def __call__(self):
        from tightframe.training import ClassifierModule

        original = ClassifierModule.on_after_backward

        def on_after_backward(module):
            if module.global_step == self.step:
                die()
            original(module)

        ClassifierModule.on_after_backward = on_after_backward


class Moment:
    """A moment of a training: just before a call of a function, or, of a write of bytes, in the middle of it.

    Args:
        target: dotted name of the function.
        call: number of the call, from 1.
    """

    def __init__(self, target, call):
        self.target = target
        self.call = call

    def arrange(self, act, setattr=setattr):
        """Arrange that ``act()`` is called then; ``setattr`` puts the function's substitute in its place."""
        place, _, name = self.target.rpartition(".")
        owner, original = pkgutil.resolve_name(place), pkgutil.resolve_name(self.target)
        calls = iter(range(1, 10_000))

        def substitute(*args, **kwargs):
            if next(calls) == self.call:
                if name == "write_bytes":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                act()
            return original(*args, **kwargs)

        setattr(owner, name, substitute)


class Killed:
    """Die at a moment."""

    def __init__(self, moment):
        self.moment = moment

    def __call__(self):
        self.moment.arrange(die)


class AtCheckpoint:
    """Die when the records of an epoch are written and its checkpoint is not."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self):
        from lightning.pytorch import Trainer

        original = Trainer.save_checkpoint

        def save_checkpoint(trainer, *args, **kwargs):
            if trainer.current_epoch + 1 == self.epoch:
                die()
            original(trainer, *args, **kwargs)

        Trainer.save_checkpoint = save_checkpoint
