"""README and docs: every snippet runs, every link leads somewhere, every option exists."""

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import shutil
import urllib.parse
from pathlib import Path

import pytest
from pages import FENCE, blocks_of, run_blocks

from flaxattn.training.renamed import RENAMED

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(ROOT.glob("README*.md"))
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
OWN_TASK = ROOT / "docs" / "own_task.md"  # which has a test of its own
RUN = [path for path in PAGES if path != OWN_TASK and path.name != "pitfalls.md"]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "results" / "README.md"]
COMMANDS = ["translate", "score", "compare", "align", "export", "serve"]
COMMANDS += ["generate", "label", "classify"]
TASK = [["language"], ["labelling"], ["classification"], ["denoising"]]
OTHERS = {"--extra", "--group", "--with"}  # options of uv and pip

OPTION = re.compile(r"--[a-z][a-z0-9-]*")
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def read(path):
    return path.read_text(encoding="utf-8")


def prose(path):
    """A page without its fenced blocks."""
    return FENCE.sub("", read(path))


# ---- Python ----------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory as the pages assume it: a run, its exported model, adapters to it."""
    from flaxattn.training.storage.adapter import write_adapter
    from flaxattn.translation.trained.exporting import export
    from flaxattn.translation.trained.loading import load
    from flaxattn.translation.trained.to_ctranslate2 import export_ctranslate2

    run = shutil.copytree(ROOT / "tests" / "kept" / "1", tmp_path / "runs" / "tiny")
    loaded = load(run)
    export(tmp_path / "my-model", loaded)
    if importlib.util.find_spec("ctranslate2"):
        export_ctranslate2(tmp_path / "my-model-int8", loaded, "int8")
    (tmp_path / "runs" / "medical").mkdir()
    table = loaded.params["source_embedding"]["embedding"]
    adapters = {"source_embedding": {"embedding": {"a": table[:, :1], "b": table[:1]}}}
    path = tmp_path / "runs" / "medical" / "adapter.safetensors"
    write_adapter(path, adapters, loaded.params, 1.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A working directory with a model of each task that has a command."""
    from flaxattn import TransformerConfig
    from flaxattn.tasks.modules import init_of, module_of
    from flaxattn.tasks.storing import Loaded, export
    from flaxattn.text.tokenizer import Tokenizer
    from flaxattn.training.parameters.initial import fresh_params

    text = "As for the soup: it was cold. In Jordan Chelsea broke an arm . The old"
    tokenizer = Tokenizer.train(text.split(), 300, keep_spaces=True)
    config = TransformerConfig(tokenizer.vocab_size, 8, 8, num_heads=2, num_layers=1)
    for task, labels in {"language": (), "labelling": ("O", "B"), "classification": "ab"}.items():
        params = fresh_params(init_of(module_of(task, config, len(labels))), 0)
        loaded = Loaded(task, config, params, tokenizer, 64, tuple(labels))
        (tmp_path / "runs").mkdir(exist_ok=True)
        export(tmp_path / "runs" / task, loaded, result={})
    monkeypatch.chdir(tmp_path)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_the_snippets_of_a_page_run(path, request):
    text = read(path)
    if "runs/tiny" in text or "my-model" in text:
        request.getfixturevalue("workplace")
    elif path.name == "tasks.md":
        request.getfixturevalue("models")
    there = importlib.util.find_spec("ctranslate2")
    blocks = (block for block in blocks_of(text) if there or "import ctranslate2" not in block.text)
    run_blocks(blocks, str(path))


@pytest.mark.thorough
def test_a_task_of_ones_own_is_trained(tmp_path, monkeypatch, standard_promotion):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: --group dev")
    monkeypatch.chdir(tmp_path)
    run_blocks(blocks_of(read(OWN_TASK)), str(OWN_TASK))
    assert (tmp_path / "runs" / "digits" / "model.safetensors").exists()


def test_it_is_as_long_as_the_page_says():
    (block,) = (block for block in blocks_of(read(OWN_TASK)) if block.info == "python")
    task = block.text[block.text.index("class DigitsTask") : block.text.index("result = run")]
    counts = block.text.count("\n"), task.rstrip().count("\n") + 1
    assert "{} lines, {} of them the task".format(*counts) in read(OWN_TASK)


def test_a_snippet_that_prints_something_else_is_found_out():
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    with pytest.raises(AssertionError, match="line 1"):
        run_blocks(blocks_of(page), "page")


# ---- Links -----------------------------------------------------------------------------------


def anchors_of(path):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path, target):
    """What is wrong with a link on a page, or None."""
    parts = urllib.parse.urlsplit(target)
    if parts.scheme:
        return None if parts.scheme == "https" and "." in parts.netloc else "no address"
    file = path.parent / urllib.parse.unquote(parts.path) if parts.path else path
    if not file.exists():
        return "no such file"
    if parts.fragment and parts.fragment not in anchors_of(file):
        return "no such heading"
    return None


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_every_link_leads_somewhere(path):
    code = re.compile(r"`[^`\n]+`")
    targets = LINK.findall(code.sub("code", prose(path)))
    found = {target: broken(path, target) for target in targets}
    assert not {target: fault for target, fault in found.items() if fault}


@pytest.mark.parametrize(
    "target", ["gone.md", "#no-such-heading", "docs/masks.md#gone", "https://nowhere", "ftp://a.b"]
)
def test_a_link_that_leads_nowhere_is_found_out(target):
    assert broken(ROOT / "README.md", target)


def test_what_most_readers_come_for_is_one_click_from_the_front_page():
    wanted = {
        "masks.md#a-custom-mask",
        "layers.md#loading-flax-parameters",
        "translation.md#train-on-your-own-files",
    }
    assert wanted <= set(LINK.findall(read(ROOT / "docs" / "index.md")))


# ---- Commands --------------------------------------------------------------------------------


def commands_of(path):
    """(program, words) for every command of ours in the ```bash blocks of a page."""
    for block in blocks_of(read(path)):
        if block.info == "bash":
            lines = block.text.replace("\\\n", " ").splitlines()
            for line in lines:
                yield from ours_in(shlex.split(line, comments=True))


def ours_in(words):
    for i, word in enumerate(words):
        if word in ("train.py", "flaxattn") and (i == 0 or words[i - 1] in ("run", "python")):
            ends = (j for j, w in enumerate(words) if j > i and w in ("|", "<", ">", "&&", "&"))
            yield word, words[i + 1 : next(ends, len(words))]


def parse(program, words):
    """Reads a command line as the program would; raises SystemExit or ValueError if it refuses."""
    from configs import PRESETS, TASKS
    from flaxattn.__main__ import _command
    from flaxattn.training.asking import asked
    from flaxattn.translation.commands.translate import Translate

    words = list(words)
    if program == "train.py" or words[:1] == ["train"]:
        words = words[words[:1] == ["train"] :]
        presets = TASKS[words.pop(0)] if program != "train.py" and words[:1] in TASK else PRESETS
        asked(presets, words, prog=program, about="")
    else:
        _command(words, Translate)


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_every_command_is_understood(path):
    for program, words in commands_of(path):
        if "--help" not in words:
            try:
                parse(program, words)
            except (SystemExit, ValueError):
                pytest.fail(f"{program} {shlex.join(words)}")


def test_a_misspelt_option_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nuv run train.py small --trian a.en a.de | tee log\n```\n")
    ((program, words),) = commands_of(page)
    assert words == ["small", "--trian", "a.en", "a.de"]
    with pytest.raises((SystemExit, ValueError)):
        parse(program, words)


@functools.cache
def options():
    """Every option that the help of our programs names."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trained = [["train", *task] for task in TASK] + [["train", "denoising", "spans"]]
        for words in [["train"], *trained, *([name] for name in COMMANDS)]:
            with pytest.raises(SystemExit):
                parse("flaxattn", [*words, "--help"])
    return set(OPTION.findall(printed.getvalue()))


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_every_option_that_is_named_exists(path):
    named = {
        option
        for code in re.findall(r"`(--[^`\n]+)`", prose(path))
        for option in OPTION.findall(code)
    }
    assert {"--train", "--n-best", "--json"} <= options()
    once = {f"--{name.replace('_', '-')}" for name in RENAMED if path.name == "CHANGELOG.md"}
    assert not named - options() - OTHERS - once
