"""The warm worker: what a call that it runs must share with one that runs by itself, and whom it serves."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import Place, command, environment

from ddgen.app import kept
from ddgen.cli import companion, handover, standin, wire
from ddgen.cli import warm as asking
from ddgen.weights import registry
from ddgen.weights.header import Header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored

pytestmark = pytest.mark.skipif(not standin.possible(), reason="a warm worker needs Linux 5.3 or later")


class Warm(Place):
    """A place with a runtime directory of its own, where a worker has been left by a first call."""

    def __init__(self, path: Path, runtime: Path) -> None:
        super().__init__(path)
        self.runtime = runtime
        self.folder = runtime / "ddgen"
        self.counted = 0

    def variables(self, **more: str) -> dict[str, str]:
        return environment(self.home, XDG_RUNTIME_DIR=str(self.runtime), **more)

    def call(
        self, *arguments: str, stdin: bytes | None = None, fake: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        return self.run(*arguments, stdin=stdin, fake=fake, XDG_RUNTIME_DIR=str(self.runtime), **variables)

    def sh(self, script: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
        return self.shell(script, XDG_RUNTIME_DIR=str(self.runtime), **variables)

    def begin(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        return self.start(*arguments, XDG_RUNTIME_DIR=str(self.runtime), **variables)

    def leave(self, keep: str = "30m", fake: bool = True, **variables: str) -> None:
        """Have a first call leave a worker, and wait until it takes calls."""
        done = self.call("sample", "x", "--seed", "1", "-q", "-f", "--steps", "1", "--keep-alive", keep, fake=fake, **variables)
        assert (done.returncode, done.stderr) == (0, b"")
        until(lambda: [path for path in self.sockets() if asking.ask(str(path), "status") is not None])

    def sockets(self) -> list[Path]:
        return sorted(self.folder.glob("*.sock"))

    def status(self) -> dict[str, Any]:
        """Ask the one worker, as `ddgen warm status` does."""
        (path,) = self.sockets()
        answer = asking.ask(str(path), "status")
        assert answer is not None
        return answer

    def calls(self) -> int:
        """Return how many calls the worker has taken since this was last asked."""
        made = self.status()["calls"]
        assert isinstance(made, int)
        found, self.counted = made - self.counted, made
        return found

    def stop(self) -> None:
        self.call("warm", "stop")
        until(lambda: not self.folder.exists() or not list(self.folder.iterdir()))


def until(done: object, seconds: float = 120.0) -> None:
    """Wait until `done()` is true."""
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def make(path: Path) -> Iterator[Warm]:
    """Yield a place whose sockets have a short path, as they must."""
    runtime = Path(tempfile.mkdtemp(prefix="warm-", dir="/tmp"))
    made = Warm(path, runtime)
    yield made
    if not made.folder.is_symlink() and made.folder.is_dir() and made.folder.stat().st_uid == os.geteuid():
        made.folder.chmod(0o700)
        for socket_ in made.sockets():
            asking.ask(str(socket_), "stop")
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Warm]:
    """A place without a worker."""
    yield from make(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    yield from make(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def warm(shared: Warm) -> Warm:
    """A place with a worker: the same for all tests that leave it alive."""
    for name in shared.files():
        (shared.path / name).unlink()
    if not shared.sockets() or asking.ask(str(shared.sockets()[0]), "status") is None:
        shared.leave()
        shared.counted = 0
    shared.calls()
    return shared


def both(warm: Warm, *arguments: str, stdin: bytes | None = None) -> tuple[bytes, bytes, int]:
    """Run a call in the worker and by itself; it must have ended in the same way. Return that."""
    warm.calls()
    one = warm.call(*arguments, stdin=stdin)
    assert warm.calls() == 1, "the worker took it"
    other = warm.call(*arguments, stdin=stdin, DDGEN_KEEP_ALIVE="0")
    assert warm.calls() == 0, "the worker was not asked"
    found = one.stdout, one.stderr, one.returncode
    assert found == (other.stdout, other.stderr, other.returncode)
    return found


def test_it_is_used_unseen(warm: Warm) -> None:
    out, error, code = both(warm, "sample", "a fox", "--seed", "7", "-f", "--steps", "2")
    assert (out, code) == (b"a-fox-7.png\n", 0) and error.startswith(b"ddgen: sticker")
    cold = (warm.path / "a-fox-7.png").read_bytes()
    warm.call("sample", "a fox", "--seed", "7", "-f", "--steps", "2")
    assert (warm.path / "a-fox-7.png").read_bytes() == cold
    assert both(warm, "sample", "-", "--plan", "--seed", "3", stdin=b"a tulip")[2] == 0


def test_bad_input_ends_as_it_does_cold(warm: Warm) -> None:
    codes = {
        ("sample", "x", "--steps", "0"): 2,
        ("sample", "x", "--stpes", "9", "--json"): 2,
        ("edit", "nothing.png", "a fox"): 4,
        ("sample", "x", "--model", "nothing.safetensors"): 5,
    }
    for arguments, code in codes.items():
        assert both(warm, *arguments)[2] == code


def test_faults_in_the_middle(warm: Warm) -> None:
    for fault, code in (("memory", 8), ("nan", 9), ("bug", 1)):
        one = warm.call("sample", "x", "--seed", "7", FAKE_FAIL=fault)
        other = warm.call("sample", "x", "--seed", "7", FAKE_FAIL=fault, DDGEN_KEEP_ALIVE="0")
        assert one.returncode == code and one.stderr == other.stderr
    assert warm.calls() == 3


def test_its_surroundings_are_the_callers(warm: Warm) -> None:
    (warm.path / "deep").mkdir()
    done = warm.sh(
        "umask 077; cd deep; ddgen sample x --seed 7 -q; stat -c %a x-7.png; echo a tulip | ddgen sample - -q -o - | head -c 4 | tail -c 3; echo;"
        " ddgen sample x -q -o y.png > /dev/full; echo $?; ddgen sample x -q -o z.png >&-; echo $?;"
        " ddgen sample x -q -o w.png <&- 2>&-; DDGEN_SEED=9 ddgen sample x -q; (ulimit -f 1; ddgen sample x -q -o v.png; echo $?)"
    )
    assert done.stdout.split() == b"x-7.png 600 PNG 7 7 w.png x-9.png 7".split()
    assert b"over the file size limit" in done.stderr and b"standard output is closed" in done.stderr
    assert warm.calls() == 7
    gone = warm.sh("mkdir gone && cd gone && rmdir ../gone && ddgen sample x -q -f -o ../u.png; echo $?")
    cold = warm.sh(
        "mkdir gone && cd gone && rmdir ../gone && ddgen sample x -q -f -o ../u.png; echo $?", DDGEN_KEEP_ALIVE="0"
    )
    assert (gone.stdout, gone.stderr) == (cold.stdout, cold.stderr) and warm.calls() == 1


def test_a_reader_that_goes_away(warm: Warm) -> None:
    done = warm.sh("ddgen sample x -n 4 --steps 2 -q | true; echo ${PIPESTATUS[0]}", FAKE_DELAY="0.1")
    assert (done.stdout, done.stderr) == (b"141\n", b"")
    assert warm.calls() == 1


def test_a_terminal_is_still_one(warm: Warm) -> None:
    main, other = pty.openpty()
    running = subprocess.Popen(
        [*command(), "sample", "a fox", "--seed", "7", "--steps", "12"],
        cwd=warm.path,
        env=warm.variables(FAKE_DELAY="0.05"),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(main, 1 << 16):
            shown += part
    os.close(main)
    assert running.wait(timeout=20) == 0
    assert b"/12" in shown and shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0
    assert warm.calls() == 1


def begun(running: subprocess.Popen[bytes]) -> None:
    """Wait for the line that tells of the work."""
    assert running.stderr is not None
    assert running.stderr.readline().startswith(b"ddgen: sticker")


SLOW = ("sample", "x", "-n", "60", "--steps", "1", "--batch-size", "1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(warm: Warm, number: signal.Signals) -> None:
    running = warm.begin(*SLOW, FAKE_DELAY="0.05")
    begun(running)
    time.sleep(0.3)
    running.send_signal(number)
    _, error = running.communicate(timeout=30)
    assert running.returncode == -number
    assert re.fullmatch(rb"ddgen: interrupted; \d+ of 60 images saved\n", error)
    until(lambda: warm.status()["running"] == 0)
    assert not [name for name in warm.files() if name.endswith(".part")]
    assert warm.call("sample", "x", "--seed", "7", "-q").stdout == b"x-7.png\n" and warm.calls() == 2


def test_an_ignored_signal_stays_ignored(warm: Warm) -> None:
    running = warm.sh(
        "trap '' HUP; ddgen sample x --seed 7 --steps 8 -q & pid=$!; sleep 0.6; kill -HUP $pid; wait $pid; echo $?",
        FAKE_DELAY="0.1",
    )
    assert running.stdout.split() == [b"x-7.png", b"0"]
    assert warm.calls() == 1


def forks(worker: int) -> list[int]:
    """Return the processes that a worker has forked."""
    text = Path(f"/proc/{worker}/task/{worker}/children").read_text()
    return [int(word) for word in text.split()]


def worker_of(warm: Warm) -> int:
    pid = warm.status()["pid"]
    assert isinstance(pid, int)
    return pid


def test_a_killed_worker_loses_no_call(warm: Warm) -> None:
    worker = worker_of(warm)
    running = warm.begin("sample", "x", "--seed", "7", "--steps", "8", FAKE_DELAY="0.1")
    begun(running)
    os.kill(worker, signal.SIGKILL)
    out, error = running.communicate(timeout=30)
    assert (running.returncode, out, error) == (0, b"x-7.png\n", b"")
    assert warm.call("sample", "x", "--seed", "8", "-q").stdout == b"x-8.png\n", "cold, past the dead socket"
    warm.leave()
    assert worker_of(warm) != worker


def test_a_killed_fork_looks_like_a_killed_call(warm: Warm) -> None:
    running = warm.begin(*SLOW, FAKE_DELAY="0.1")
    begun(running)
    (fork,) = forks(worker_of(warm))
    os.kill(fork, signal.SIGKILL)
    assert running.wait(timeout=30) == -signal.SIGKILL
    running.communicate()


def test_both_killed_is_one_clean_line(warm: Warm) -> None:
    worker = worker_of(warm)
    running = warm.begin(*SLOW, FAKE_DELAY="0.1")
    begun(running)
    (fork,) = forks(worker)
    os.kill(worker, signal.SIGKILL)
    os.kill(fork, signal.SIGKILL)
    _, error = running.communicate(timeout=30)
    assert running.returncode == 8
    assert error == (
        b"ddgen: error: the warm worker was killed in the middle of the work; run the same command again\n"
    )


def test_a_killed_caller_takes_its_work_along(warm: Warm) -> None:
    running = warm.begin(*SLOW, FAKE_DELAY="0.1")
    begun(running)
    worker = worker_of(warm)
    assert len(forks(worker)) == 1
    running.kill()
    running.communicate()
    until(lambda: not forks(worker))


def test_calls_may_overlap(warm: Warm) -> None:
    running = [warm.begin("sample", "x", "--seed", str(seed), "--steps", "5", FAKE_DELAY="0.1") for seed in (7, 8, 9)]
    assert [one.communicate(timeout=60)[0] for one in running] == [b"x-7.png\n", b"x-8.png\n", b"x-9.png\n"]
    assert warm.calls() == 3


def test_it_dies_by_itself(place: Warm) -> None:
    place.leave("2s")
    worker = worker_of(place)
    until(lambda: not Path(f"/proc/{worker}/ns").exists() or not place.folder.exists())
    assert place.call("warm", "status").stderr == (
        b"ddgen: no worker is there; a call with --keep-alive 5m leaves one\n"
    )
    assert place.call("sample", "x", "--seed", "7", "-q").stdout == b"x-7.png\n"
    assert not place.folder.exists(), "nobody asked this time"


def test_stop_lets_calls_end(warm: Warm) -> None:
    running = warm.begin("sample", "x", "--seed", "7", "--steps", "8", FAKE_DELAY="0.1")
    begun(running)
    stopped = warm.call("warm", "stop")
    assert re.fullmatch(rb"ddgen: worker \d+ stopped\n", stopped.stderr) and stopped.returncode == 0
    assert warm.sockets() == []
    assert running.communicate(timeout=30)[0] == b"x-7.png\n" and running.returncode == 0
    assert warm.call("warm", "stop").stderr == b"ddgen: no worker is there\n"


def test_stop_ends_one_that_is_starting_or_dead(place: Warm) -> None:
    assert place.call("sample", "x", "-q", "--keep-alive", "30m").returncode == 0
    until(lambda: [path for path in place.folder.glob("*.lock") if path.read_text().isdigit()])
    (lock,) = place.folder.glob("*.lock")
    pid = int(lock.read_text())
    stopped = place.call("warm", "stop")
    assert (stopped.returncode, stopped.stderr) == (0, f"ddgen: worker {pid} stopped\n".encode())
    until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b"")
    assert place.call("warm", "stop").stderr == b"ddgen: no worker is there\n"
    assert list(place.folder.glob("*")) == []


def test_a_call_says_how_long(warm: Warm) -> None:
    assert warm.status()["keep"] == 1800
    warm.call("sample", "x", "-q", "--keep-alive", "1h")
    until(lambda: warm.status()["keep"] == 3600)
    warm.call("sample", "x", "-q", "--keep-alive", "30m")
    until(lambda: warm.status()["keep"] == 1800)
    shown = warm.call("warm", "status").stdout.decode()
    assert re.fullmatch(r"pid \d+: no model yet; \d+ calls, 0 running; stays \d+ s of 1800 s\n", shown)
    (line,) = warm.call("warm", "status", "--json").stdout.splitlines()
    assert json.loads(line)["type"] == "worker"


def test_the_config_can_ask(place: Warm) -> None:
    config = place.home / ".config" / "ddgen"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('[sample]\nkeep_alive = "5m"\n')
    assert place.call("sample", "x", "-q").returncode == 0
    until(lambda: place.sockets())
    assert place.status()["keep"] == 300


@pytest.mark.parametrize("text", ["soon", "-1", "25h", "5 minutes", ""])
def test_no_length_of_time(place: Warm, text: str) -> None:
    done = place.call("sample", "x", "--keep-alive", text)
    assert done.returncode == 2 and done.stderr.startswith(f"ddgen: error: --keep-alive '{text}' is ".encode())
    assert not place.folder.exists()


def test_a_failed_or_planned_call_leaves_none(place: Warm) -> None:
    assert place.call("sample", "x", "--keep-alive", "5m", "--plan").returncode == 0
    assert place.call("sample", "x", "--keep-alive", "5m", FAKE_FAIL="nan").returncode == 9
    assert not place.folder.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_an_open_directory_is_not_used(warm: Warm, mode: int) -> None:
    warm.folder.chmod(mode)
    done = warm.call("sample", "x", "--seed", "7", "-q", "--keep-alive", "5m")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x-7.png\n", b""), "quiet"
    loud = warm.call("sample", "x", "--seed", "8", "--keep-alive", "5m")
    assert loud.returncode == 0
    assert loud.stderr.endswith(f"no worker stays: '{warm.folder}' is not yours alone; remove it\n".encode())
    warm.folder.chmod(0o700)
    assert warm.calls() == 0


def test_a_link_or_a_file_is_not_used(place: Warm, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    place.folder.symlink_to(elsewhere)
    assert place.call("sample", "x", "--seed", "7", "-q", "--keep-alive", "5m").returncode == 0
    assert list(elsewhere.iterdir()) == []
    assert not standin.is_private(str(place.folder)) and standin.is_private(str(elsewhere))
    place.folder.unlink()
    place.folder.touch(mode=0o600)
    assert place.call("sample", "x", "--seed", "8", "-q", "--keep-alive", "5m").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_directory_is_not_used(place: Warm) -> None:
    place.folder.mkdir(mode=0o700)
    os.chown(place.folder, 12345, 12345)
    assert not standin.is_private(str(place.folder))
    done = place.call("sample", "x", "--seed", "7", "--keep-alive", "5m")
    assert done.returncode == 0 and b"is not yours alone" in done.stderr
    assert list(place.folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_heard(warm: Warm) -> None:
    warm.folder.chmod(0o755)
    warm.runtime.chmod(0o755)
    (path,) = warm.sockets()
    path.chmod(0o777)
    code = (
        "import os, socket, sys; os.setuid(12345); s = socket.socket(socket.AF_UNIX); s.settimeout(5)\n"
        "s.connect(sys.argv[1]); s.sendall(b'\\0\\0\\0\\x0e' + b'{\"do\": \"stop\"}'); print(s.recv(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30)
    assert done.stdout in ("", "b''\n"), "no answer"
    warm.folder.chmod(0o700)
    assert warm.calls() == 0


def test_another_kind_of_process_is_refused(warm: Warm) -> None:
    (path,) = warm.sockets()
    for words in (["protocol 0"], [], None):
        with wire.connect(str(path), 5) as line:
            wire.send(line, {"do": "run", "likeness": words, "nice": 0})
            assert wire.receive(line)[0]["ready"] is False
    assert warm.call("sample", "x", "--seed", "7", "-q", OMP_NUM_THREADS="2").stdout == b"x-7.png\n"
    assert warm.sh("nice -n 3 ddgen sample x --seed 8 -q").stdout == b"x-8.png\n"
    assert warm.calls() == 0


def test_nonsense_does_no_harm(warm: Warm) -> None:
    (path,) = warm.sockets()
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x02[]", b"\0\0\0\x04null", b"\xff" * 64, b"\0\0\0\x0f{\"do\": \"dance\"}"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(path))
            line.sendall(data)
    assert warm.call("sample", "x", "--seed", "7", "-q").stdout == b"x-7.png\n"
    assert warm.calls() == 1


def test_a_program_that_was_changed_is_not_run(tmp_path: Path, place: Warm) -> None:
    """The worker of a copy of ddgen sees that a file of it changed, and goes."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(standin.__file__).parents[1], copy / "ddgen", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(standin.__file__).parents[2] / "weights.toml", copy / "ddgen" / "weights.toml")
    of_copy = {"PYTHONPATH": f"{copy}:{environment(place.home)['PYTHONPATH']}"}
    place.leave(fake=False, **of_copy)
    worker = place.status()["pid"]
    assert place.call("sample", "x", "--seed", "7", "-q").stdout == b"x-7.png\n"
    assert place.calls() == 0, "the other ddgen ran by itself"
    assert place.call("sample", "x", "--seed", "8", "-q", fake=False, **of_copy).stdout == b"x-8.png\n"
    assert place.calls() == 1
    with (copy / "ddgen" / "errors.py").open("a") as file:
        file.write("\n")
    assert place.call("sample", "x", "--seed", "9", "-q", fake=False, **of_copy).stdout == b"x-9.png\n"
    until(lambda: not Path(f"/proc/{worker}/ns").exists() or place.sockets() == [])


def test_a_real_model_is_not_loaded_again(place: Warm) -> None:
    """The same bytes as a cold run's, from weights that the worker holds; others once the file changes."""
    model = place.path / "model.safetensors"
    shutil.copy(registry.find(None).source.path or "", model)  # not the packaged one: it is touched below
    asked = ("sample", "a red apple", "--seed", "7", "--steps", "2", "-q", "-m", str(model))
    first = place.call(*asked, "--keep-alive", "30m", fake=False, OMP_NUM_THREADS="2")
    assert first.returncode == 0, first.stderr
    until(lambda: place.sockets())
    assert place.status()["models"] == ["model.safetensors"]
    for more in ((), ("--grid",), ("--clip-skip", "2")):
        warm = place.call(*asked, *more, "-o", "warm/", fake=False, OMP_NUM_THREADS="2")
        cold = place.call(*asked, *more, "-o", "cold/", "--keep-alive", "0", fake=False, OMP_NUM_THREADS="2")
        assert (warm.returncode, warm.stderr) == (cold.returncode, cold.stderr) == (0, b"")
    assert place.calls() == 3
    names = sorted(path.name for path in (place.path / "cold").iterdir())
    assert len(names) == 4
    for name in names:
        assert (place.path / "warm" / name).read_bytes() == (place.path / "cold" / name).read_bytes(), name
    weights = bytearray(model.read_bytes())
    weights[-400_000:] = bytes(400_000)
    model.write_bytes(weights)
    changed = place.call(*asked, "-o", "changed.png", fake=False, OMP_NUM_THREADS="2")
    again = place.call(*asked, "-o", "again.png", "--keep-alive", "0", fake=False, OMP_NUM_THREADS="2")
    assert (changed.returncode, place.calls()) == (again.returncode, 1)
    if changed.returncode == 0:
        assert (place.path / "changed.png").read_bytes() == (place.path / "again.png").read_bytes()
        assert (place.path / "changed.png").read_bytes() != (place.path / "cold" / names[0]).read_bytes()


def test_parts_are_held_by_what_their_files_are(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"weights")

    def take(configuration: object = "c", dtype: object = "float32", called: str = "model.out") -> object:
        state = file.stat()
        header = Header(file, {}, {}, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        part = {"out": Stored(header, Take((called,)), (1,))}
        cpu = types.SimpleNamespace(type="cpu")
        return kept.take("unet", part, configuration, dtype, cpu, object)  # type: ignore[arg-type,type-var]

    assert take() is not take(), "a process of its own holds nothing"
    with kept.holding() as keys:
        one = take()
    assert take() is one and take("d") is not one and take(dtype="float16") is not one
    assert take(called="model_ema.out") is not one, "the averaged one of the same file"
    assert kept.is_held(keys)
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert not kept.is_held(keys) and take() is not one
    kept.keep_only(())
    assert not kept.is_held(keys)


def test_words_that_must_be_equal() -> None:
    words = standin.likeness()
    assert words == standin.likeness() and standin.name(words) == standin.name(words)
    assert any(word.startswith("Uid:") for word in words) and any(word.startswith("mnt:") for word in words)
    assert standin.name([*words, "more"]) != standin.name(words)


def test_when_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDGEN_KEEP_ALIVE", raising=False)
    assert not handover.unwanted(["sample", "x"])
    assert not handover.unwanted(["sample", "x", "--keep-alive", "5m"])
    assert handover.unwanted(["sample", "x", "--keep-alive", "0"])
    assert handover.unwanted(["sample", "--keep-alive=0", "x"])
    assert not handover.unwanted(["sample", "--", "--keep-alive", "0"])
    monkeypatch.setenv("DDGEN_KEEP_ALIVE", "0")
    assert handover.unwanted(["sample", "x"])


def test_without_a_worker_nothing_is_imported() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom ddgen.cli import handover\n"
        "handover.offer(['sample', 'x'])\n"
        "assert not {'socket', 'json', 'ddgen.cli.wire', 'ddgen.errors', 'torch'} & (set(sys.modules) - before)\n"
    )
    env = {**os.environ, "XDG_RUNTIME_DIR": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_commands_that_it_takes_exist() -> None:
    from ddgen.cli.program import COMMANDS

    assert handover.SERVED <= set(COMMANDS)


def test_messages_with_descriptors() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    reader, writer = os.pipe()
    with one, other:
        other.settimeout(5)
        wire.send(one, {"text": "\udcff a \u2028"}, [writer])
        message, (received,) = wire.receive(other)
        assert message == {"text": "\udcff a \u2028"} and not os.get_inheritable(received)
        os.write(received, b"x")
        assert os.read(reader, 1) == b"x"
        one.sendall((wire.LIMIT + 1).to_bytes(4, "big"))
        with pytest.raises(wire.Broken, match="a message of"):
            wire.receive(other)
        one.sendall(b"\0\0\0\x01{")
        with pytest.raises(wire.Broken, match="not JSON"):
            wire.receive(other)
        one.close()
        with pytest.raises(wire.Broken, match="went away"):
            wire.receive(other)
    wire.close([reader, writer, received])


def test_surroundings() -> None:
    request, descriptors = companion.surroundings(["sample", "x"], [1])
    assert json.loads(json.dumps(request)) == request
    assert os.fstat(descriptors[0]).st_ino == Path.cwd().stat().st_ino
    os.close(descriptors[0])
    assert descriptors[1:] == [1] == request["streams"]
    assert request["umask"] == os.umask(request["umask"])
