"""Scores worked out by hand, and the signatures that make them comparable."""

import math
import shutil

import pytest
import sacrebleu

from flaxattn.__main__ import main
from flaxattn.translation.text.comparing import compare
from flaxattn.translation.text.scoring import doubt_of_spelling, doubt_of_tokenizer, score

VERSION = sacrebleu.__version__


def values(hypotheses, references, **settings):
    return {s.name: s.value for s in score(hypotheses, references, **settings)}


def bleu(hypotheses, references, **settings):
    return values(hypotheses, references, **settings)["bleu"]


def test_bleu_is_the_geometric_mean_of_four_precisions():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples match: 1/5 in all.
    assert bleu(["a b c d e"], ["a b c d f"]) == pytest.approx(100 * (1 / 5) ** (1 / 4))


def test_bleu_punishes_short_translations():
    # Every n-gram matches, but 5 words stand for 7.
    assert bleu(["a b c d e"], ["a b c d e f g"]) == pytest.approx(100 * math.exp(1 - 7 / 5))


def test_bleu_counts_over_the_whole_corpus():
    # 9 of 10 words, 6 of 8 pairs, 3 of 6 triples and 2 of 4 quadruples, of both sentences.
    found = bleu(["a b c d e", "v w x y z"], ["a b c d e", "v w q y z"])
    matches = (5 + 4) / 10 * (4 + 2) / 8 * (3 + 0) / 6 * (2 + 0) / 4
    assert found == pytest.approx(100 * matches ** (1 / 4))


def test_the_reference_is_the_second_argument():
    assert bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))
    # 4 of 6, 3 of 5, 2 of 4 and 1 of 3 n-grams match, and no brevity penalty.
    product = 4 / 6 * 3 / 5 * 2 / 4 * 1 / 3
    assert bleu(["a b c d e f"], ["a b c d"]) == pytest.approx(100 * product ** (1 / 4))


def test_13a_splits_punctuation_off():
    assert bleu(["ein Haus, ein Baum."], ["ein Haus , ein Baum ."]) == pytest.approx(100)


def test_lower_cased_bleu_ignores_case_and_cased_bleu_does_not():
    found = values(["A b c d e"], ["a b c d e"])
    assert found["bleu"] == pytest.approx(100 * (1 / 5) ** (1 / 4))
    assert found["bleu_lc"] == pytest.approx(100)


def test_chrf_weights_recall_twice_over_character_ngrams():
    # "ab" against "abcd": precision 1 and 1, recall 1/2 and 1/3; longer n-grams there are none.
    precision, recall = 1, (1 / 2 + 1 / 3) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert values(["ab"], ["abcd"])["chrf"] == pytest.approx(expected)


def test_chrf_of_equal_and_of_disjoint_texts():
    assert values(["ein Haus"], ["ein Haus"])["chrf"] == pytest.approx(100)
    assert values(["ein Haus"], ["XYZ"])["chrf"] == 0


def test_the_zh_tokenizer_splits_chinese_into_characters():
    hypotheses, references = ["我爱北京天安"], ["我爱北京天门"]
    # 5 of 6 characters, 4 of 5 pairs, 3 of 4 triples and 2 of 3 quadruples match: 1/3 in all.
    assert bleu(hypotheses, references, tokenizer="zh") == pytest.approx(100 * (1 / 3) ** (1 / 4))
    assert bleu(hypotheses, references) == 0


@pytest.mark.parametrize("tokenizer", ["13a", "zh", "char", "intl"])
def test_signatures_say_how_each_score_was_computed(tokenizer):
    found = {s.name: s.signature for s in score(["a"], ["a"], tokenizer=tokenizer)}
    tail = f"eff:no|tok:{tokenizer}|smooth:exp|version:{VERSION}"
    assert found == {
        "bleu": f"nrefs:1|case:mixed|{tail}",
        "bleu_lc": f"nrefs:1|case:lc|{tail}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{VERSION}",
    }


@pytest.mark.parametrize(
    "text, unfit, fitting",
    [
        ("我喜欢猫,它们也喜欢我。", "13a intl none ja-mecab ko-mecab", "zh char"),
        ("私は猫が好きです。", "13a intl none zh ko-mecab", "ja-mecab char"),
        ("ฉันชอบแมว", "13a intl none zh ja-mecab", "char"),
        ("ຂ້ອຍມັກແມວ", "13a", "char"),
        ("Ich mag Katzen. 猫", "", "13a zh ja-mecab char intl none ko-mecab"),
        ("나는 고양이를 좋아한다.", "", "13a ko-mecab"),
        ("Я люблю кошек 12", "", "13a zh"),
        ("12 + 5", "", "13a"),
        ("", "", "13a"),
    ],
)
def test_a_tokenizer_that_does_not_split_a_script_is_doubted(text, unfit, fitting):
    for tokenizer in unfit.split():
        doubt = doubt_of_tokenizer([text] * 3, tokenizer)
        assert f"--bleu-tokenizer {tokenizer} " in doubt
        assert all(word in doubt for word in fitting.split())
    assert not any(doubt_of_tokenizer([text] * 3, tokenizer) for tokenizer in fitting.split())


def test_texts_that_differ_in_unicode_form_alone_are_told():
    assert doubt_of_spelling(["é", "e"], ["é", "é"]) == ""
    assert doubt_of_spelling(["e\u0301"], ["e\u0301"]) == ""
    assert "in 1 lines" in doubt_of_spelling(["é", "a"], ["e\u0301", "a"])
    assert "in 2 lines" in doubt_of_spelling(["e\u0301", "u\u0308"], ["é", "a"])


def test_nothing_is_not_scored():
    with pytest.raises(ValueError, match="nothing to score"):
        score([], [])


def test_as_many_references_as_translations_are_needed():
    for hypotheses, references in [(["a", "b"], ["a"]), (["a"], ["a", "b"])]:
        with pytest.raises(ValueError):
            score(hypotheses, references)


SAID = [f"the {a} man sees {n} dogs" for a in ("old", "young", "tired") for n in range(2, 12)]
WORSE = [text.replace("dogs", "cats") if i % 3 else text for i, text in enumerate(SAID)]
OTHERWISE = [text.replace("dogs", "cats") if i % 3 != 1 else text for i, text in enumerate(SAID)]


def test_what_is_better_by_chance_is_told_from_what_is_better():
    found = {
        (x.system, x.metric): x
        for x in compare({"a": WORSE, "b": SAID, "c": OTHERWISE}, [SAID], samples=200)
    }
    for place, metric in enumerate(("bleu", "bleu_lc", "chrf")):
        a, b, c = (found[system, metric] for system in "abc")
        assert a.p is None and b.p < 0.05 < c.p
        assert b.value == pytest.approx(100) and b.interval == pytest.approx(0)
        assert a.value == pytest.approx(score(WORSE, SAID)[place].value)
        assert "bs:200" in a.signature and "seed:12345" in a.signature


def test_a_word_of_any_reference_counts():
    alone, both = score(WORSE, SAID), score(WORSE, SAID, OTHERWISE)
    assert all(b.value > a.value for a, b in zip(alone, both, strict=True))
    assert score(WORSE, SAID, WORSE)[0].value == pytest.approx(100)
    assert "nrefs:2" in both[0].signature
    with pytest.raises(ValueError, match="30 hypotheses for 29 references"):
        score(WORSE, SAID, SAID[1:])


def test_files_and_runs_are_compared_by_the_command(finished, tmp_path, capsys):
    paths = {name: tmp_path / name for name in ("a", "b", "ref")}
    for path, lines in zip(paths.values(), (WORSE, SAID, SAID), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines))
    systems, given = [str(paths["a"]), str(paths["b"])], ["--references", str(paths["ref"])]
    assert main(["compare", *systems, *given, "--samples", "100"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("baseline") and " 100.00 ± 0.00  p = 0.0" in second
    assert main(["score", *systems, str(paths["ref"])]) == 0  # the last two are references
    assert "nrefs:2" in capsys.readouterr().out
    assert main(["compare", *systems]) == 2
    assert "--references: expected a file" in capsys.readouterr().err
    assert main(["compare", systems[0], systems[0], *given]) == 2
    assert "each once" in capsys.readouterr().err
    shutil.copytree(finished.folder, tmp_path / "other")
    assert main(["compare", str(finished.folder), str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.count("p = 1.0000") == 3  # metrics
    paths["b"].write_text("one line\n")
    assert main(["compare", *systems, *given]) == 2
    assert "have [1, 30] lines" in capsys.readouterr().err
