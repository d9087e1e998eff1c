"""A process that may die: it answers JSON over a pipe, within a time limit for every question.

A damaged child can send nothing but data, and a kill reaches what it started itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

BOUND = b"bound"  # from here on it dies with its parent
READY = b"ready"
START_SECONDS = 180.0  # importing torch on a loaded machine
MEMORY_SHARE = 0.8  # of what is free: a kernel that eats memory must not take the machine along


class ChildDiedError(Exception):
    """The process ended by itself; the message says how, with its last lines."""


class ChildLateError(Exception):
    """No answer within the limit; the process was killed."""


class Child:
    """Runs `python -m module`, which calls `serve`. `hello` is the first thing it is told."""

    def __init__(self, module: str, hello: bytes, environment: Mapping[str, str]) -> None:
        self._output = tempfile.TemporaryFile()
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fp4bench.child", str(theirs.fileno()), module],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=self._output,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={**os.environ, **environment},
        )  # fmt: skip
        theirs.close()
        self._said: bytes | None = None
        with contextlib.suppress(OSError):  # it may be dead already: the first question tells
            self._pipe.send_bytes(hello)

    def ask(self, question: bytes, limit: float) -> bytes:
        """The answer. ChildDiedError or ChildLateError; after either the process is gone."""
        self.resume()
        try:
            while self._said != READY:
                self._await(START_SECONDS)
                self._said = self._pipe.recv_bytes()
            self._pipe.send_bytes(question)
            self._await(limit)
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise ChildDiedError(self._obituary()) from None

    def pause(self) -> None:
        """Take no processor time until `resume`. In its first moments it cannot be paused: if the
        parent died then, it would sleep for ever."""
        with contextlib.suppress(EOFError, OSError):  # it is dead: whoever asks is told
            if self._said is None and self._pipe.poll():
                self._said = self._pipe.recv_bytes()
            if self._said is not None:
                self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process and all that it started; any thread may, and whoever asks is told."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Kill, and let go of all that belongs to the process; nothing may be asked any more."""
        self.kill()
        self._process.wait()
        self._pipe.close()
        self._output.close()

    def _await(self, limit: float) -> None:
        if not self._pipe.poll(limit):
            self.stop()
            raise ChildLateError(f"no answer within {limit:.0f} s; the process was killed")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # dead, and no longer waited for
            os.killpg(self._process.pid, number)

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._output.seek(0)
        last = self._output.read().decode(errors="replace").strip().splitlines()[-3:]
        self.stop()
        return f"the process died with {how}" + "".join(f" | {line[-300:]}" for line in last)


def serve(prepare: Callable[[bytes], Callable[[bytes], bytes]]) -> None:
    """In the child: answer questions until the parent closes the pipe or dies.

    `prepare` gets the parent's hello and returns what answers a question.
    """
    pipe: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    try:
        answer = prepare(pipe.recv_bytes())
        pipe.send_bytes(READY)
        while True:
            pipe.send_bytes(answer(pipe.recv_bytes()))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone: no clean-up may hold this process


def limit_memory() -> None:
    """Let allocations fail before the machine swaps. Not beside CUDA, which maps much more."""
    room = _available_memory()
    if room is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(MEMORY_SHARE * room)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _available_memory() -> int | None:
    """Bytes that may still be used: the system's, or what the cgroup has left."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return min(found, default=None)


def _die_with_parent() -> None:
    """On Linux, so that a kernel that hangs does not outlive a killed tuner; and be the first
    that the system kills where memory ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Run a module that serves. Nothing large is imported before the parent can count on this."""
    _die_with_parent()
    with Connection(os.dup(int(sys.argv[1]))) as pipe, contextlib.suppress(BrokenPipeError):
        pipe.send_bytes(BOUND)
    runpy.run_module(sys.argv.pop(2), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
