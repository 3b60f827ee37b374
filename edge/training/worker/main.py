"""The worker process: one base model, kept loaded, and one request after the other.

Requests come as JSON lines on stdin, replies go as JSON lines to what was stdout when the process began;
whatever a library prints goes to stderr. A stop request, SIGTERM and the end of stdin (the parent died) end
the training under way with a checkpoint; the latter two end the process as well.

Run as: python -m edge.training.worker.main BASE BACKEND PRECISION
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import BinaryIO, cast

import msgspec

from converters.errors import TunefleetError
from edge.backends import load_model
from edge.backends.contract import TrainableModel
from edge.choices import Precision
from edge.training.requests import (
    Failed,
    Loaded,
    Reply,
    Request,
    Stop,
    Training,
)
from edge.training.worker.held_model import HeldModel
from edge.training.worker.model_server import ModelServer


class RequestQueue:
    """Requests as they come; a stop is known at once, also in the middle of training."""

    def __init__(self) -> None:
        self.stop = Event()
        self._requests: SimpleQueue[Request | None] = SimpleQueue()  # its put is safe in a signal handler
        self._is_closed = False

    def __iter__(self) -> Iterator[Request]:
        """Requests until the queue is closed."""
        while (request := self._requests.get()) is not None:
            yield request

    def read(self, lines: BinaryIO) -> None:
        """Takes requests until `lines` ends, and closes the queue then."""
        with contextlib.closing(self):
            self._read(lines)

    def _read(self, lines: BinaryIO) -> None:
        for line in lines:
            request = msgspec.json.decode(line, type=Request)
            if isinstance(request, Stop):
                self.stop.set()
                continue
            if isinstance(request, Training):
                self.stop.clear()
            if self._is_closed:
                self.stop.set()
            self._requests.put(request)

    def close(self, *_: object) -> None:
        """Ends the training under way, and the process after it."""
        self._is_closed = True
        self.stop.set()
        self._requests.put(None)


def serve(
    requests: RequestQueue,
    load: Callable[[Precision], TrainableModel],
    precision: Precision,
    send: Callable[[Reply], None],
) -> None:
    """Loads the model and answers requests until the queue is closed."""
    try:
        server = ModelServer(HeldModel(load, precision), requests.stop, send)
    except TunefleetError as error:
        return send(_failed(error))
    card = server.held.card
    send(
        Loaded(
            backend=card.backend,
            num_parameters=card.num_parameters,
            max_tokens=card.max_tokens,
            precision=card.precision,
            backend_why="",  # the parent chose it
            precision_why=card.why if precision == "auto" else "as asked",
            has_chat_template=server.model.tokenizer.has_chat_template,
        )
    )
    for request in requests:
        try:
            send(server.answer(request))
        except TunefleetError as error:
            send(_failed(error))
    return None


def main(base: str, backend: str, precision: Precision) -> None:
    """Serves the parent process at the other end of stdin and stdout."""
    # Files of our own: at exit Python would wait for the reader's lock on sys.stdin.
    lines = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = RequestQueue()
    signal.signal(signal.SIGTERM, requests.close)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    Thread(target=requests.read, args=(lines,), daemon=True).start()

    def send(reply: Reply) -> None:
        try:
            replies.write(msgspec.json.encode(reply) + b"\n")
        except BrokenPipeError:
            requests.close()

    serve(requests, lambda chosen: load_model(backend, Path(base), precision=chosen), precision, send)


def _failed(error: TunefleetError) -> Failed:
    return Failed(error=type(error).__name__, message=str(error), whole=error.whole)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], cast(Precision, sys.argv[3]))
