"""A server beside the tests, and a model that needs no training, for those of `flaxattn serve`."""

import contextlib
import http.client
import json
import socket
import threading

import numpy as np
import pytest

from flaxattn.explorer import Attention, Sentence, page
from flaxattn.translation.serving.app import Limits, make_app


class Shouting:
    """A model that writes in capitals, from back to front; it waits where it is told to."""

    most_best = 2

    def __init__(self):
        self.batches, self.go = [], threading.Event()
        self.go.set()

    def answer(self, questions):
        self.batches.append(len(questions))
        assert self.go.wait(30)
        if any(question.text == "boom" for question in questions):
            raise RuntimeError("the model has no word for it")
        return [self._of(question) for question in questions]

    def explain(self, text):
        words = text.split()
        if not words:
            return None
        weights = np.full((2, len(words), len(words)), 1 / len(words), np.float32)
        seen = [Attention("cross", words, words, weights)]
        return page([Sentence(text, seen, text.upper())])

    def _of(self, question):
        words = question.text.upper().split()[::-1]
        best = [{"text": " ".join(words), "score": -0.5}, {"text": "?", "score": None}]
        if question.align:
            best[0]["alignment"] = [[i, len(words) - 1 - i] for i in range(len(words))]
        return best[: question.n_best]


@contextlib.contextmanager
def running(service, limits=None, reports=None):
    """The port of a server that answers with a model."""
    uvicorn = pytest.importorskip("uvicorn")
    told = [] if reports is None else reports
    app = make_app(service, limits or Limits(), report=told.append)
    settings = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5)
    server = uvicorn.Server(settings)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=512)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def asked(port, method, path, body=None, **headers):
    """Status, headers and content of an answer; of JSON what it holds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
    if answer.headers.get_content_type() == "application/json":
        content = json.loads(content)
    return answer.status, answer.headers, content


def translated(port, texts, **more):
    """Status and content of what /translate answers."""
    body = json.dumps({"texts": texts} | more)
    status, _, content = asked(
        port, "POST", "/translate", body, **{"Content-Type": "application/json"}
    )
    return status, content
