"""Kill a process before its n-th change of a file, for any n."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(change: int, folder: Path, action: Callable[[], object]) -> bool:
    """Run `action` in a process that dies at its change number `change` (from 0) in `folder`; whether it came so far.

    It dies before a rename, a removal or a new folder. Of a file that it opens for writing, it leaves an empty one.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(Countdown(change, folder))
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class Countdown:
    """An audit hook."""

    def __init__(self, change: int, folder: Path) -> None:
        self.remaining, self.folder = change, str(folder)

    def __call__(self, event: str, arguments: tuple) -> None:
        is_opened = event == "open" and self.is_written(*arguments)
        if not (is_opened or event in CHANGES):
            return
        if self.remaining == 0:
            if is_opened:
                self.remaining = -1  # opening it is an event, too
                open(arguments[0], "ab").close()
            os.kill(os.getpid(), signal.SIGKILL)
        self.remaining -= 1

    def is_written(self, path: object, mode: str | None, flags: int) -> bool:
        if os.path.isdir(str(path)):  # a file without a name, which goes with the process
            return False
        return str(path).startswith(self.folder) and bool(flags & WRITING) and not str(path).endswith(".lock")
