"""What the README and the documentation's pages hold: fenced blocks, of which Python's are run."""

import contextlib
import io
import itertools
import re
from typing import NamedTuple

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    info: str
    text: str
    expected: str | None  # the ```text block that follows at once


def blocks_of(text):
    found = list(FENCE.finditer(text))
    for here, after in itertools.zip_longest(found, found[1:]):
        adjoins = after and after["info"] == "text" and not text[here.end() : after.start()].strip()
        line = text[: here.start("text")].count("\n")
        yield Block(line, here["info"], here["text"], after["text"] if adjoins else None)


def run_blocks(blocks, filename):
    """Runs each ```python block by itself; what it prints is what the page says it does."""
    for block in blocks:
        if block.info == "python":
            code = compile("\n" * block.line + block.text, filename, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, {"__name__": "page"})
            if block.expected is not None:
                where = f"{filename}, line {block.line}"
                assert stripped(printed.getvalue()) == stripped(block.expected), where


def stripped(text):
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
