"""The warm worker: a process that has torch and the weights in memory and forks itself for every call.

    ddgen sample --keep-alive 5m ...    runs by itself, then starts the worker
    ddgen sample ...                    is forked from the worker, with everything loaded

A call runs in a process of its own, so nothing of it stays behind: not its directory, signals, environment or
LoRAs, nor its crash. That is sound because the worker itself never computes: it starts no thread (it counts
them before each fork) and touches no GPU, so a fork is an exact copy. Calls may overlap, as they do without it.

It ends by itself when nobody called for a while, when ddgen or torch on disk is not what it was started from,
and by `ddgen warm stop`. When it is killed, the calls that it has forked go on.
"""

import contextlib
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ddgen.cli import standin, wire

CLOSED = 1.0  # seconds to wait for a caller to finish a sentence
MODELS = 2  # held at once
ROOM = 1.5  # a model is held if this many times its bytes are free
PRELOADED = (
    "ddgen.cli.program", "ddgen.cli.keeping", "ddgen.cli.companion", "ddgen.app.assemble", "ddgen.app.pipeline",
    "ddgen.app.estimate", "ddgen.app.produce", "numpy.random", "PIL.PngImagePlugin", "difflib", "secrets",
)  # fmt: skip
PRELOADED_WITH_A_MODEL = ("ddgen.app.additions", "ddgen.diffusion.draws", "ddgen.diffusion.solver")


@dataclass
class Call:
    """A call that was forked: its process, its caller's connection, and the pipe for its last report."""

    pid: int
    line: socket.socket
    report: int


class Refused(Exception):
    """A call that must run elsewhere, and why."""


def main() -> NoReturn:
    """Run a worker; what it begins with is JSON on standard input, as keeping.report makes it."""
    begin = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.umask(0o077)
    folder = standin.directory()
    words = standin.likeness()
    with contextlib.suppress(OSError):
        if standin.is_private(folder):
            worker = Worker(f"{folder}/{standin.name(words)}", words)
            worker.prepare(begin)
            worker.run()
    os._exit(0)


class Worker:
    """One worker. place: the path of its lock and socket without their suffixes."""

    def __init__(self, place: str, words: list[str]) -> None:
        self.place, self.words = place, words
        self.lock = os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: another one is there
        if os.fstat(self.lock).st_ino != os.stat(f"{place}.lock").st_ino:
            raise BlockingIOError("the lock of one that was just leaving")
        os.ftruncate(self.lock, 0)
        os.write(self.lock, str(os.getpid()).encode())
        self.installed = installed()
        self.calls: dict[int, Call] = {}
        self.keep = 0
        self.made = 0
        self.wanted: list[dict[str, Any]] = []
        self.models: dict[str, set[Any]] = {}
        self.leaving = False

    def prepare(self, begin: dict[str, Any]) -> None:
        """Import all that a call needs, load the first call's model, then open the socket."""
        for name in PRELOADED:
            import_module(name)
        read_ahead()
        self.threads = threads()
        self.learn(begin)
        self.load()
        self.selector = selectors.DefaultSelector()
        self.woken, self.waker = socket.socketpair()
        for end in (self.woken, self.waker):
            end.setblocking(False)
        self.selector.register(self.woken, selectors.EVENT_READ, lambda: self.woken.recv(4096))
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.leave)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.place}.sock")  # of one that was killed: the lock is ours
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"{self.place}.sock")
        self.listener.listen(16)
        self.selector.register(self.listener, selectors.EVENT_READ, self.answer)
        self.ends = time.monotonic() + self.keep

    def leave(self, *_: object) -> None:
        """Take no more calls, and end when those that run have ended."""
        if not self.leaving:
            self.leaving = True
            for suffix in (".sock", ".lock"):
                with contextlib.suppress(OSError):
                    os.unlink(self.place + suffix)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self.place))  # it stays while others have sockets in it
            self.selector.unregister(self.listener)
            self.listener.close()

    def run(self) -> None:
        """Serve until nobody calls any more."""
        while True:
            rest = max(0.0, self.ends - time.monotonic())
            for key, _ in self.selector.select(None if self.calls else rest):
                key.data()
            self.reap()
            if self.calls:
                continue
            if not self.leaving and time.monotonic() >= self.ends:
                self.leave()
            if self.leaving:
                return
            if self.wanted:
                self.load()

    def answer(self) -> None:
        """Hear one caller."""
        line, _ = self.listener.accept()
        kept = False
        try:
            line.settimeout(CLOSED)
            if wire.peer(line) != os.geteuid():
                return
            request, descriptors = wire.receive(line)
            wire.close(descriptors)
            if request.get("do") == "run":
                kept = self.take(line, request)
            elif request.get("do") == "status":
                wire.send(line, self.status())
            elif request.get("do") == "stop":
                wire.send(line, self.status())
                self.leave()
        except OSError:
            pass  # the caller went away
        finally:
            if not kept:
                line.close()

    def take(self, line: socket.socket, hello: dict[str, Any]) -> bool:
        """Fork a call, if this worker is what it needs; return whether it was."""
        try:
            self.check(hello)
        except Refused as why:
            wire.send(line, {"ready": False, "why": str(why)})
            return False
        wire.send(line, {"ready": True})
        request, descriptors = wire.receive(line)
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of a fork beside threads; ours are counted
            pid = os.fork()
        if pid == 0:
            try:
                from ddgen.cli import forked

                self.let_go(line, reader)
                forked.live(line, request, descriptors, writer)
            finally:
                os._exit(1)
        os.close(writer)
        wire.close(descriptors)
        self.calls[pid] = Call(pid, line, reader)
        self.made += 1
        self.selector.register(line, selectors.EVENT_READ, lambda: self.abandoned(pid))
        return True

    def check(self, hello: dict[str, Any]) -> None:
        """See that a call may be forked from this process.

        Raises:
            Refused: it may not.
        """
        if hello.get("likeness") != self.words:
            raise Refused("another kind of process")
        if installed() != self.installed:
            self.leave()
            raise Refused("the program was changed")
        if hello.get("nice") != os.getpriority(os.PRIO_PROCESS, 0):
            raise Refused("another priority")
        if threads() > self.threads:
            self.leave()
            raise Refused("there are threads")

    def let_go(self, line: socket.socket, reader: int) -> None:
        """Close, in the fork, what is the worker's."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        self.listener.close()
        self.woken.close()
        self.waker.close()
        os.close(self.lock)
        os.close(reader)
        for call in self.calls.values():
            call.line.close()
            os.close(call.report)

    def abandoned(self, pid: int) -> None:
        """End a call whose caller was killed: it is to the user the same process."""
        call = self.calls[pid]
        with contextlib.suppress(OSError):
            if call.line.recv(1):
                return
        self.selector.unregister(call.line)
        os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Tell the callers of those that have ended how they ended."""
        for pid, status in ended():
            call = self.calls.pop(pid, None)
            if call is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                wire.send(call.line, {"code": code} if code >= 0 else {"signal": -code})
            with contextlib.suppress(KeyError):
                self.selector.unregister(call.line)
            call.line.close()
            with os.fdopen(call.report, "rb") as told, contextlib.suppress(ValueError):
                self.learn(json.loads(told.read()))
            self.ends = time.monotonic() + self.keep

    def learn(self, report: dict[str, Any]) -> None:
        """Take over from a call how long to stay, and what it had to load."""
        self.keep = int(report.get("keep") or self.keep)
        self.wanted = list(report.get("loaded", ())) or self.wanted

    def load(self) -> None:
        """Hold the models that the last call used, and no more than MODELS; without threads, without a GPU."""
        from ddgen.app import kept

        for entry in self.wanted:
            text = json.dumps(entry, sort_keys=True)
            known = self.models.pop(text, None)
            while len(self.models) >= MODELS:
                del self.models[next(iter(self.models))]
            if known is not None and kept.is_held(known):
                self.models[text] = known
                continue
            kept.keep_only(key for keys in self.models.values() for key in keys)
            found = loaded(entry)
            if found is not None:
                self.models[text] = found
        self.wanted = []
        kept.keep_only(key for keys in self.models.values() for key in keys)
        gc.collect()
        gc.freeze()  # a fork that collects garbage would copy all that it looks at

    def status(self) -> dict[str, Any]:
        """Return what `ddgen warm status` shows."""
        return {
            "pid": os.getpid(),
            "keep": self.keep,
            "left": round(max(0.0, self.ends - time.monotonic()), 1),
            "calls": self.made,
            "running": len(self.calls),
            "models": [Path(json.loads(text)["path"]).name for text in self.models],
        }


def read_ahead() -> None:
    """Build what every call builds: its command, CLIP's vocabulary, the table of models, Pillow's formats."""
    from PIL import Image

    from ddgen.cli.handover import SERVED
    from ddgen.cli.program import command_of
    from ddgen.errors import DdgenError
    from ddgen.text.tokens import Tokenizer
    from ddgen.weights import registry

    for name in SERVED:
        command_of(name)
    Image.preinit()
    with contextlib.suppress(DdgenError):  # whoever calls will be told
        Tokenizer().read()
        registry.find(None)


def loaded(entry: dict[str, Any]) -> "set[Any] | None":
    """Load a model's parts and return their keys; None where they are gone, damaged or too large."""
    import torch

    from ddgen.app import assemble, memory
    from ddgen.errors import DdgenError

    most = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one would be lost in every fork, and waited for
    try:
        for name in PRELOADED_WITH_A_MODEL:
            import_module(name)
        free = memory.free_memory(torch.device("cpu"))
        if free is not None and ROOM * assemble.held_bytes(entry) > free:
            return None
        return assemble.hold(entry)
    except (DdgenError, OSError, MemoryError):
        return None
    finally:
        torch.set_num_threads(most)


def ended() -> Iterator[tuple[int, int]]:
    """Yield (process, status) of every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def threads() -> int:
    """Return how many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def installed() -> list[tuple[str, int, int]]:
    """Return what tells this program from a changed one: its files and torch's version, by size and time."""
    import ddgen

    files = sorted(Path(ddgen.__file__).parent.rglob("*.py"))
    torch = find_spec("torch")
    if torch is not None and torch.origin is not None:
        files.append(Path(torch.origin).with_name("version.py"))
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((str(path), state.st_size, state.st_mtime_ns))
    return found
