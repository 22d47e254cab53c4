"""The threads in which passes run: many may wait, few work.

A pass mostly waits: for a command, for health, for the store. Those waits (``idle``) cost a thread but no
place among the few that may work at once, so a command that hangs delays its own resource and no other, and
a thousand passes do not fight for the processor. Threads are made when they are needed and end when they
have had nothing to do for a while. They are daemons: the agent's end waits for them as long as it likes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

_LINGER_S = 10.0
_here = threading.local()


class Workers:
    """``working``: how many may work at once; ``most``: how many passes there may be, those that wait
    included.
    """

    def __init__(self, *, working: int = 4, most: int = 200) -> None:
        self.most = most
        self._places = threading.Semaphore(working)
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._free = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job``, which must not raise, in a thread of its own or a free one."""
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                self._threads += 1
                threading.Thread(target=self._run, name=f"pass {self._threads}", daemon=True).start()
        self._jobs.put(job)

    def _run(self) -> None:
        _here.places = self._places
        while True:
            try:
                job = self._jobs.get(timeout=_LINGER_S)
            except queue.Empty:
                with self._lock:
                    if self._free == 0:
                        continue  # a job has been put for this thread meanwhile
                    self._free -= 1
                    self._threads -= 1
                return
            with self._places:
                job()
            with self._lock:
                self._free += 1


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """Around a wait: the thread's place is another's meanwhile. Nothing outside the threads of Workers."""
    places: threading.Semaphore | None = getattr(_here, "places", None)
    if places is None:
        yield
        return
    places.release()
    try:
        yield
    finally:
        places.acquire()
