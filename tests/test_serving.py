"""`flaxattn serve`: the endpoint, its limits, what is asked together, who may ask, how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from serving_cases import Shouting, asked, running, translated

from flaxattn.translation.commands.serve import Serve
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.serving.app import Limits
from flaxattn.translation.serving.model import Question, Service
from flaxattn.translation.trained.loading import load

JSON = {"Content-Type": "application/json"}
LIMITS = Limits(max_characters=20, max_texts=3, max_waiting=4)
TEXTS = ["The old man sees a dog.", "a cat", "", "The child and the woman find the small house."]


@pytest.fixture(scope="module")
def shouting():
    return Shouting()


@pytest.fixture(scope="module")
def port(shouting):
    with running(shouting, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def service(finished):
    return Service(load(finished.folder))


# ---- The endpoint ----------------------------------------------------------------------------


def test_texts_are_answered_in_their_order(port):
    status, found = translated(port, ["a dog", "", "b"], n_best=2, align=True)
    assert status == 200
    assert [[x["text"] for x in best] for best in found["translations"]] == [
        ["DOG A", "?"], ["", "?"], ["B", "?"]
    ]  # fmt: skip
    assert found["translations"][0][0] == {
        "text": "DOG A",
        "score": -0.5,
        "alignment": [[0, 1], [1, 0]],
    }
    assert translated(port, ["a"]) == (200, {"translations": [[{"text": "A", "score": -0.5}]]})


@pytest.mark.parametrize(
    "body, status, told",
    [
        ("{", 400, "is no JSON"),
        ("[" * 1_500, 400, "is no JSON"),
        ('["a"]', 400, "expected an object"),
        ("{}", 400, "expected an object"),
        ('{"texts": []}', 400, "expected an object"),
        ('{"texts": [1]}', 400, "texts[0]: expected a text"),
        ('{"texts": ["\\ud800"]}', 400, "texts[0]: holds half a character"),
        ('{"texts": ["a"], "n_best": 3}', 400, "n_best: is 3; expected a number from 1 to 2"),
        ('{"texts": ["a"], "n_best": true}', 400, "n_best: is True"),
        ('{"texts": ["a"], "align": 1}', 400, "align: is 1; expected true or false"),
        ('{"texts": ["a"], "beam": 1}', 400, "beam: is unknown; expected"),
        (json.dumps({"texts": ["a", "x" * 21]}), 413, "texts[1]: has 21 characters"),
        (json.dumps({"texts": ["a"] * 4}), 413, "texts: are 4; expected at most 3"),
        (b"x" * 100_000, 413, "more than 1720 bytes"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_told(port, body, status, told):
    found, _, content = asked(port, "POST", "/translate", body, **JSON)
    assert (found, told in content["error"]) == (status, True), content


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/translate", 405), ("POST", "/translate", 415), ("GET", "/nowhere", 404),
     ("GET", "/explain", 400), ("GET", "/explain?text=+", 400),
     ("GET", "/explain?text=" + "x" * 21, 413)],
)  # fmt: skip
def test_other_ways_to_ask_are_refused_in_json(port, method, path, status):
    found, _, content = asked(
        port, method, path, '{"texts": ["a"]}', **{"Content-Type": "text/plain"}
    )
    assert found == status and content["error"]


def test_health_tells_the_limits(port):
    limits = {"max_characters": 20, "max_texts": 3, "max_waiting": 4, "max_n_best": 2}
    assert asked(port, "GET", "/health")[2] == {"status": "ready", "waiting": 0, "limits": limits}


# ---- Who may ask -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, status",
    [("localhost:9", 200), ("LOCALHOST", 200), ("127.0.0.1", 200), ("[::1]:9", 200),
     ("192.0.2.7:80", 200), ("evil.example", 421), ("localhost.evil.example:9", 421),
     ("127.0.0.1.evil.example", 421), ("", 421)],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered_to(port, host, status):
    assert asked(port, "GET", "/health", Host=host)[0] == status


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/explain?text=a"])
def test_pages_hold_all_they_need_and_browsers_are_told_so(port, path):
    status, headers, content = asked(port, "GET", path)
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert ("unsafe-inline" in headers["content-security-policy"]) == path.startswith("/explain")
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert not re.search(rb"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", content)


# ---- Together --------------------------------------------------------------------------------


def wait_until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_waits_is_answered_together_and_too_much_is_refused():
    shouting = Shouting()
    with running(shouting, LIMITS) as port, ThreadPoolExecutor(4) as pool:
        shouting.go.clear()
        asking = [pool.submit(translated, port, [word]) for word in "abcd"]
        wait_until(lambda: asked(port, "GET", "/health")[2]["waiting"] == 4)
        status, content = translated(port, ["e"])
        assert status == 503 and "4 texts are waiting" in content["error"]
        shouting.go.set()
        found = [x.result()[1]["translations"][0][0]["text"] for x in asking]
        assert found == ["A", "B", "C", "D"]
        assert sum(shouting.batches) == 4 and len(shouting.batches) <= 3
        assert translated(port, ["e"])[0] == 200


def test_a_failure_is_told_of_and_hits_nobody_else():
    shouting, reports = Shouting(), []
    with running(shouting, Limits(), reports) as port, ThreadPoolExecutor(4) as pool:
        shouting.go.clear()
        asking = [pool.submit(translated, port, [word]) for word in ("a", "b", "boom", "c")]
        wait_until(lambda: asked(port, "GET", "/health")[2]["waiting"] == 4)
        shouting.go.set()
        answers = [x.result() for x in asking]
        assert [status for status, _ in answers] == [200, 200, 500, 200]
        assert "output of the server" in answers[2][1]["error"]
        assert reports == ["POST /translate: RuntimeError: the model has no word for it"]
        assert translated(port, ["a"])[0] == 200


# ---- A trained model -------------------------------------------------------------------------


def test_the_model_answers_as_the_translator_does_alone_or_together(service, finished):
    loaded = load(finished.folder)
    expected = Translator(*loaded).translate(TEXTS, n_best=2)
    together = service.answer([Question(text, 2, align=True) for text in TEXTS])
    assert [[x["text"] for x in best] for best in together] == [
        [x.text for x in best] for best in expected
    ]
    alone = [service.answer([Question(text)])[0][0]["text"] for text in TEXTS]
    assert alone == [best[0].text for best in expected]
    for text, best in zip(TEXTS, together, strict=True):
        for source, target in best[0]["alignment"]:
            assert source < len(text.split()) and target < len(best[0]["text"].split())


def test_attention_is_shown_of_what_can_be(service):
    shown = service.explain("a cat")
    assert shown is None or shown.startswith("<!doctype html>")
    assert service.explain("  ") is None


@pytest.mark.thorough
def test_200_at_a_time_are_all_answered(service):
    texts = [f"The old man sees {i % 7} dogs." for i in range(200)]
    with running(service) as port, ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda text: translated(port, [text]), texts))
    assert {status for status, _ in found} == {200}
    expected = {text: service.answer([Question(text)])[0] for text in texts[:7]}
    for text, (_, answer) in zip(texts, found, strict=True):
        assert answer["translations"][0][0]["text"] == expected[text][0]["text"]


# ---- The command -----------------------------------------------------------------------------


def test_a_port_in_use_is_told_of_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {taken}: cannot be listened on"):
            Serve(tmp_path / "no run", port=taken).run()
    with pytest.raises(ValueError, match="--host not a name: no such"):
        Serve(tmp_path, host="not a name").run()


@pytest.mark.thorough
def test_the_command_answers_until_it_is_told_to_stop(finished):
    words = [sys.executable, "-m", "flaxattn", "serve", str(finished.folder), "--port", "0"]
    with subprocess.Popen(
        words, cwd=Path(__file__).parents[1], env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE, text=True,
    ) as process, contextlib.ExitStack() as stack:  # fmt: skip
        stack.callback(process.kill)  # else a failure would wait for it
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"ready: http://127.0.0.1:(\d+)", line):
                break
        status, answer = translated(int(found[1]), ["a dog", "a cat"])
        assert status == 200 and len(answer["translations"]) == 2
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0 and rest == "flaxattn: stopped\n"
    assert any("CPU" in line for line in said) and not any("Warning" in line for line in said)
