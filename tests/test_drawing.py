"""The gallery's pictures and text show the cells and blocks of the masks, and nothing else."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import flaxattn.masks
from flaxattn.drawing.__main__ import main
from flaxattn.drawing.explain import SYMBOLS
from flaxattn.drawing.gallery import GALLERY, Entry, evaluate, save
from flaxattn.drawing.picture import PARTIAL, SEEN, show, show_all
from flaxattn.drawing.terminal import draw
from flaxattn.masks import Mask, causal, from_dense, sliding_window


def first(array):
    return np.asarray(array).reshape(-1, *array.shape[-2:])[0]


def filled(axis, color):
    """The lower corners and sizes of the rectangles of a colour, as x, y, width, height."""
    wanted = to_rgb(color)
    return sorted(
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in axis.patches
        if patch.get_fill() and patch.get_facecolor()[:3] == wanted
    )


def test_every_pattern_is_in_the_gallery():
    patterns = {n for n in flaxattn.masks.__dict__ if callable(getattr(flaxattn.masks, n))}
    patterns -= {"BlockPlan", "Blocks", "Bounds", "Mask", "index_leaf", "leaf", "mask_type"}
    assert patterns <= GALLERY.keys()
    assert all(name in GALLERY[name].code for name in patterns)


@pytest.mark.thorough(quick=8)
@pytest.mark.parametrize("name", GALLERY)
def test_the_text_is_the_mask_and_its_plan(name):
    entry = GALLERY[name]
    lines = draw(name, entry).split("\n")[3:-2]
    cells = [line[2 : 2 + entry.kv_len].ljust(entry.kv_len) for line in lines]
    read = np.array([[[c in "▀█", c in "▄█"] for c in line] for line in cells])
    dense = first(entry.mask.dense(entry.q_len, entry.kv_len))
    assert (read.swapaxes(1, 2).reshape(-1, entry.kv_len)[: entry.q_len] == dense).all()
    plan = entry.mask.plan(entry.q_len, entry.kv_len, block_q=entry.block, block_kv=entry.block)
    state = first(plan.state)
    blocks = [list(line[5 + entry.kv_len :: 2]) for line in lines[: len(state)]]
    assert (np.array(blocks) == SYMBOLS[state]).all()


@pytest.mark.parametrize("name", ["causal_window", "cross", "heads"])
def test_the_picture_is_the_mask_and_its_plan(name):
    entry = GALLERY[name]
    figure = show(entry.mask, entry.q_len, entry.kv_len, block=entry.block)
    dense = np.asarray(entry.mask.dense(entry.q_len, entry.kv_len))
    dense = dense.reshape(-1, *dense.shape[-2:])
    plan = entry.mask.plan(entry.q_len, entry.kv_len, block_q=entry.block, block_kv=entry.block)
    states = np.asarray(plan.state).reshape(-1, *plan.state.shape[-2:])
    size = entry.block
    rows = np.array(figure.axes).reshape(-1, 2)
    assert len(rows) == len(dense)
    for (left, right), cells, state in zip(rows, dense, states, strict=True):
        assert filled(left, SEEN) == sorted((s, t, 1, 1) for t, s in np.argwhere(cells))
        for kind, color in ((1, PARTIAL), (2, SEEN)):
            places = sorted((j * size, i * size, size, size) for i, j in np.argwhere(state == kind))
            assert filled(right, color) == places
    skipped = 1 - (states > 0).mean()  # blocks that are all of one size
    assert f"{skipped:.0%} of the work skipped" in rows[0, 1].get_title("left")


def test_a_picture_names_examples_and_heads_and_shows_the_first_few():
    widths = np.arange(6).reshape(2, 3)
    titles = [a.get_title("left") for a in show(sliding_window(widths), 5, 5).axes[::2]]
    assert titles == [
        "example 0, head 0: what each query sees",
        "example 0, head 1: what each query sees",
        "example 0, head 2: what each query sees",
        "example 1, head 0: what each query sees",
    ]


def test_a_picture_shows_itself_in_a_notebook():
    assert show(causal(), 5, 7)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("lengths", [(1, 1), (3, 11), (70, 70), (1, 0)])
def test_any_lengths_can_be_drawn(lengths):
    mask = causal()
    show(mask, *lengths).savefig(io.BytesIO())
    show_all({"a": (mask, *lengths)}).savefig(io.BytesIO())


def test_arrays_that_are_too_short_are_told():
    with pytest.raises(ValueError, match="from_dense"):
        show(from_dense(np.ones((3, 3), bool)), 4, 4)


def test_save_writes_a_file_for_each_entry_and_one_of_all(tmp_path):
    entries = {"causal": GALLERY["causal"], "causal() & full()": Entry("causal() & full()", "")}
    files = save(tmp_path / "new", entries)
    assert [file.name for file in files] == ["causal.png", "2.png", "gallery.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_command_draws_what_is_named(capsys, tmp_path):
    own = "causal() & sliding_window(1)"
    assert main(["longformer", own, "--length", "4"]) == 0
    expected = [draw("longformer", GALLERY["longformer"]), draw(own, Entry(own, "", 4, 4, 1))]
    assert capsys.readouterr().out == "\n\n\n".join(expected) + "\n"
    assert main(["causal", "--output", str(tmp_path)]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["causal.png"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["cuasal"], "Did you mean 'causal'?"),
        (["zebra"], "expected one of full, causal"),
        (["causal(1)"], "TypeError"),
        (["causl()"], "causl"),
        (["len('')"], "gives a int; expected a mask"),
        (["causal(", "--length", "3"], "SyntaxError"),
        (["causal()", "--length", "0"], "--length is 0"),
        (["prefix(-1)"], "at least 0"),
        (["valid(np.ones(3, bool))"], "valid"),
    ],
)
def test_the_command_says_what_it_does_not_understand(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert not printed.out


def test_an_expression_gives_its_mask():
    assert isinstance(evaluate("~causal()"), Mask)
    assert (evaluate("prefix(2)").dense(3, 3) == flaxattn.masks.prefix(2).dense(3, 3)).all()
