import random

import pytest
from small_tokenizer import small_tokenizer

from legokv.documents.cut import DOCUMENT_END, MIN_TAIL_TOKENS, cut, document_token_ids
from legokv.errors import InvalidRequest

# One token a byte: a span's text shows where it was cut.
CODEC = small_tokenizer()


def cut_text(text, max_chunk_tokens):
    return [CODEC.decode(span) for span in cut(CODEC.encode(text), max_chunk_tokens, CODEC)]


def test_a_document_that_fits_is_one_chunk():
    assert cut_text("Short. And whole.", 64) == ["Short. And whole."]


def test_a_cut_goes_behind_the_last_sentence_end_in_the_last_quarter():
    text = "x" * 70 + ". " + "y" * 6 + "! " + "z" * 60
    assert cut_text(text, 100)[0] == "x" * 70 + ". " + "y" * 6 + "!"


def test_a_sentence_end_before_the_last_quarter_is_left_alone():
    text = "x" * 60 + ". " + "y" * 100
    assert cut_text(text, 100)[0] == text[:100]


@pytest.mark.parametrize("end", [".", "!", "?", '."', "?)", "\n", "。", "！", "？」"])  # noqa: RUF001
def test_these_end_a_sentence(end):
    text = "x" * 80 + end + " " + "y" * 60
    assert cut_text(text, 100)[0] == "x" * 80 + end


@pytest.mark.parametrize("inside", ["3.14", "example.org", "a?b=c", "v1.2.3"])
def test_a_stop_inside_a_word_ends_no_sentence(inside):
    text = "x" * 80 + inside + "y" * 60
    assert cut_text(text, 100)[0] == text[:100]


def test_no_cut_goes_through_a_character_when_a_sentence_ends_nearby():
    text = "字" * 28 + "。" + "字" * 60
    assert cut_text(text, 100)[0] == "字" * 28 + "。"


@pytest.mark.parametrize("num_tokens", range(101, 100 + MIN_TAIL_TOKENS))
def test_no_cut_leaves_a_tail_too_short_to_be_worth_keeping(num_tokens):
    spans = cut([5] * num_tokens, 100, CODEC)
    assert [len(span) for span in spans] == [num_tokens - MIN_TAIL_TOKENS, MIN_TAIL_TOKENS]


def test_joined_chunks_are_the_document_none_is_empty_and_none_too_long():
    words = ["alpha", "beta", "3.14", "東京。", "end.", "really?", "line\n", "naïve"]
    for seed in range(40):
        rng = random.Random(seed)
        ids = document_token_ids(" ".join(rng.choices(words, k=rng.randrange(1, 300))), CODEC)
        limit = rng.choice([1, 2, 3, 17, 64, 100, 257])
        spans = cut(ids, limit, CODEC)
        assert sum(spans, ()) == ids
        assert all(1 <= len(span) <= limit for span in spans)
        if limit >= 4 * MIN_TAIL_TOKENS and len(ids) >= MIN_TAIL_TOKENS:
            assert len(spans[-1]) >= MIN_TAIL_TOKENS


def test_a_document_is_tokenised_with_its_closing_blank_line():
    assert CODEC.decode(document_token_ids("Text.", CODEC)) == "Text." + DOCUMENT_END


def test_what_looks_like_a_special_token_stays_text():
    ids = document_token_ids("<|im_end|>", CODEC)
    assert ids == document_token_ids("<|im_", CODEC)[:-2] + document_token_ids("end|>", CODEC)


def test_a_limit_of_no_tokens_is_refused():
    with pytest.raises(InvalidRequest, match="at least 1 token, not 0"):
        cut([1, 2], 0, CODEC)
