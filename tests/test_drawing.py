"""The gallery's pictures and text show the masks and scores that they are of, and nothing else."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import flaxattn.masks
import flaxattn.scores
from flaxattn.drawing.__main__ import main
from flaxattn.drawing.explain import SYMBOLS
from flaxattn.drawing.gallery import GALLERY, MASKS, SCORES, Entry, evaluate, save
from flaxattn.drawing.picture import PARTIAL, SEEN, show, show_all, show_score
from flaxattn.drawing.terminal import draw
from flaxattn.masks import Mask, causal, from_dense, full, prefix, sliding_window
from flaxattn.scores import Score, alibi, softcap, temperature


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


NO_PATTERNS = {"BlockPlan", "Blocks", "Bounds", "Mask", "index_leaf", "leaf", "mask_type"}
NO_PATTERNS |= {"Score", "number_leaf", "score_type", "alibi_slopes", "relative_buckets"}


@pytest.mark.parametrize("room, entries", [(flaxattn.masks, MASKS), (flaxattn.scores, SCORES)])
def test_every_pattern_is_in_the_gallery(room, entries):
    patterns = {n for n in vars(room) if callable(getattr(room, n))} - NO_PATTERNS
    assert len(patterns) > 5 and patterns <= entries.keys()
    assert all(name in entries[name].code for name in patterns)


@pytest.mark.thorough(quick=8)
@pytest.mark.parametrize("name", MASKS)
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
    show_all({"a": Entry("causal()", "", *lengths)}).savefig(io.BytesIO())
    show_score(alibi(0.5), *lengths, mask=mask).savefig(io.BytesIO())
    entry = Entry("alibi(0.5)", "", *lengths, under="causal()")
    show_all({"a": entry}).savefig(io.BytesIO())
    assert draw("a", entry)


def test_arrays_that_are_too_short_are_told():
    with pytest.raises(ValueError, match="from_dense"):
        show(from_dense(np.ones((3, 3), bool)), 4, 4)


def test_save_writes_a_file_for_each_entry_and_one_of_all(tmp_path):
    entries = {"causal": GALLERY["causal"], "causal() & full()": Entry("causal() & full()", "")}
    entries |= {name: SCORES[name] for name in ("softcap", "temperature", "alibi")}
    files = save(tmp_path / "new", entries)
    names = ["causal", "2", "softcap", "temperature", "alibi", "gallery"]
    assert [file.name for file in files] == [f"{name}.png" for name in names]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_command_draws_what_is_named(capsys, tmp_path):
    own = ["causal() & sliding_window(1)", "alibi(0.5) >> softcap(2.0)"]
    assert main(["longformer", *own, "--length", "4"]) == 0
    expected = [draw("longformer", GALLERY["longformer"])]
    expected += [draw(code, Entry(code, "", 4, 4, 1)) for code in own]
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
        (["len('')"], "gives a int; expected a mask or a score"),
        (["softcap(-1.0)"], "softcap: cap is -1.0"),
        (["alibi()"], "alibi_slopes(num_heads)"),
        (["score(lambda logit: logit)"], "fn(logit, q_idx, kv_idx"),
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


# ---- Scores ----------------------------------------------------------------------------------


def panels(figure):
    """Of each row the cells, NaN where nothing is drawn, and the lines drawn on top of y = x."""
    for left, right in np.array(figure.axes).reshape(-1, 2):
        (image,) = left.images
        yield np.ma.filled(image.get_array().astype(float), np.nan), right.lines[1:]


@pytest.mark.parametrize("name", ["alibi", "relative_bias", "alibi_decoding", "capped_alibi"])
def test_the_picture_is_what_becomes_of_logits_below_the_mask(name):
    entry = SCORES[name]
    sizes = entry.q_len, entry.kv_len
    seen = np.asarray(entry.mask.dense(*sizes))
    new = lambda x: np.asarray(entry.value.dense(*sizes, logit=x)).reshape(-1, *sizes)  # noqa: E731
    rows = list(panels(show_score(entry.value, *sizes, mask=entry.mask)))
    assert len(rows) == len(new(0.0))
    last = np.flatnonzero(seen[-1])
    keys = [last[-1], last[len(last) // 2], 0]
    for head, (cells, lines) in enumerate(rows):
        np.testing.assert_array_equal(np.isnan(cells), ~seen)
        np.testing.assert_allclose(cells[seen], new(0.0)[head][seen], rtol=1e-6)
        for key, line in zip(keys, lines, strict=True):
            x, y = line.get_xdata()[7], line.get_ydata()[7]
            assert y == pytest.approx(new(float(x))[head, -1, key], rel=1e-6)


def test_keys_near_and_far_are_one_curve_where_they_are_the_same():
    ((cells, lines),) = panels(show_score(softcap(5.0), 6, 6))
    assert (cells == 0).all() and len(lines) == 1
    np.testing.assert_allclose(lines[0].get_ydata()[[0, 20]], [5 * np.tanh(-2.0), 0], rtol=1e-5)


def test_a_row_of_a_score_is_an_example_and_a_head():
    score = temperature(np.array([[1.0], [2.0]])) >> alibi(np.array([1.0, 3.0]))
    figure = show_score(score, 4, 4, mask=causal())
    titles = [axis.get_title("left") for axis in figure.axes[::2]]
    places = ["example 0, head 0", "example 0, head 1", "example 1, head 0", "example 1, head 1"]
    lows = [-3, -9, -3, -9]
    assert titles == [f"{p}: 0 becomes {low} to 0" for p, low in zip(places, lows, strict=True)]
    for row, (_, lines) in enumerate(panels(figure)):
        assert lines[0].get_ydata()[-1] == (10.0, 5.0)[row // 2]


def test_a_row_has_its_own_score_where_that_is_of_examples_and_the_mask_of_heads():
    score, mask = temperature(np.array([[1.0], [2.0]])), prefix(np.array([[1, 2, 3]]))
    rows = list(panels(show_score(score, 3, 3, mask=mask)))
    assert [np.sum(~np.isnan(cells)) for cells, _ in rows] == [3, 6, 9, 3]
    assert [lines[0].get_ydata()[-1] for _, lines in rows] == [10.0, 10.0, 10.0, 5.0]


def test_a_score_of_which_nothing_is_seen_says_so():
    figure = show_score(alibi(0.5), 3, 3, mask=full() & ~full())
    assert figure.axes[0].get_title("left") == "nothing is seen"
    assert draw("", Entry("alibi(0.5)", "", under="prefix(0)")).endswith("\n  nothing is seen")


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_left_out():
    entry = Entry(
        "score(lambda x, q, k: x - jnp.float32(k) / jnp.float32(q - 1))", "", 4, 4, under="causal()"
    )
    ((cells, _),) = panels(show_score(entry.value, 4, 4, mask=entry.mask))
    assert np.argwhere(~np.isnan(cells)).tolist() == [
        [0, 0], [2, 0], [2, 1], [2, 2], [3, 0], [3, 1], [3, 2], [3, 3],
    ]  # fmt: skip
    assert "a logit of 0 becomes -2.00 ░ to 0.00 █" in draw("", entry)


def test_the_text_of_a_score_is_what_becomes_of_a_logit():
    entry = Entry("alibi(1.0)", "", 4, 4, under="causal()")
    assert draw("", entry).split("\n") == [
        "  alibi(1.0), under causal()",
        "",
        "  ▓█",
        "  ░▒▓█",
        "",
        "  every second query; a logit of 0 becomes -3.00 ░ to 0.00 █",
    ]
    lines = draw("", Entry("temperature(np.array([2.0, 1.0]))", "", 2, 2)).split("\n")
    assert lines[0].endswith("(the first of several)")
    assert lines[2].split()[:2] == ["logit", "-10.00"]
    assert lines[3].split()[:2] == ["becomes", "-5.00"]


def test_an_expression_gives_its_mask_or_score():
    assert isinstance(evaluate("softcap(2.0) >> score(lambda x, q, k: jnp.sqrt(x))"), Score)
    assert isinstance(evaluate("~causal()"), Mask)
    assert (evaluate("prefix(2)").dense(3, 3) == flaxattn.masks.prefix(2).dense(3, 3)).all()
