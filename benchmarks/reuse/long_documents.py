"""One to four documents of 1,500 to 4,000 tokens, cut into chunks as the product cuts them.

All stand behind the head of the model's chat template. `going_on` cases have what follows the last
document as question and answer, as `essays` have. `asked` cases are the product's own chat prompts,
and ask for a fact in one document. It is told by a pronoun, in another chunk than the name that it
belongs to.
"""

import random
from collections.abc import Iterator

from benchmarks.reuse.download import read_json
from benchmarks.reuse.facts import FILLERS, FIRST_NAMES, LAST_NAMES, RELATIONS
from benchmarks.reuse.prompt import Prompt, TokenIds
from legokv.documents.cut import DOCUMENT_END, cut
from legokv.documents.document import DocumentLimits
from legokv.text.prompt import build_prompt, prompt_format
from legokv.text.tokenizer import Tokenizer

MIN_TOKENS = 1_500
MOST_TOKENS = (4_000, 3_800, 2_500, 1_850)
"""Of a document in cases of one, two, three and four: more don't fit into the model's context."""
QUESTION_TOKENS = 32
ANSWER_TOKENS = 32
MOST_CASES = 60
"""There is no text for more."""
_CHARACTERS = 20_000
"""Enough text for a document and what follows: 4,064 tokens at under 4.9 characters each."""


def going_on(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """Case n has 1 to 4 documents, by n modulo 4; its name says how many. At most MOST_CASES."""
    texts = _texts(seed=0)
    return [_going_on(tokenizer, texts, number) for number in range(min(num_cases, MOST_CASES))]


def asked(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """The same, of documents of the same texts in another order."""
    texts = _texts(seed=1)
    return [_asked(tokenizer, texts, number) for number in range(min(num_cases, MOST_CASES))]


def chunks_of(tokenizer: Tokenizer, ids: TokenIds) -> tuple[TokenIds, ...]:
    """A document's chunks, as a server with its default limits cuts them."""
    return cut(ids, DocumentLimits().max_chunk_tokens, tokenizer)


def _texts(seed: int) -> Iterator[str]:
    """Windows of the essays that do not overlap, in a seeded order."""
    text = read_json("PaulGrahamEssays.json")["text"]
    starts = list(range(0, len(text) - _CHARACTERS, _CHARACTERS))
    random.Random(seed).shuffle(starts)
    return (text[start : start + _CHARACTERS] for start in starts)


def _lengths(dice: random.Random, number: int) -> list[int]:
    """Tokens of the documents of case `number`."""
    most = MOST_TOKENS[number % len(MOST_TOKENS)]
    return [dice.randint(MIN_TOKENS, most) for _ in range(number % len(MOST_TOKENS) + 1)]


def _going_on(tokenizer: Tokenizer, texts: Iterator[str], number: int) -> Prompt:
    lengths = _lengths(random.Random(number), number)
    texts_ids = [tuple(tokenizer.encode(next(texts))) for _ in lengths]
    documents = [ids[:length] for ids, length in zip(texts_ids, lengths, strict=True)]
    rest = texts_ids[-1][lengths[-1] :]
    end = QUESTION_TOKENS + ANSWER_TOKENS
    question, answer = rest[:QUESTION_TOKENS], rest[QUESTION_TOKENS:end]
    label = f"going-on-{number}-{len(lengths)}"
    head = build_prompt(tokenizer, prompt_format(tokenizer), "?").head_ids
    return _prompt(label, head, [chunks_of(tokenizer, ids) for ids in documents], question, answer)


def _asked(tokenizer: Tokenizer, texts: Iterator[str], number: int) -> Prompt:
    dice = random.Random(20_000 + number)
    lengths, relation = _lengths(dice, number), dice.choice(RELATIONS)
    count = len(lengths)
    first, last = dice.sample(FIRST_NAMES, count), dice.sample(LAST_NAMES, count)
    names = [f"{one} {other}" for one, other in zip(first, last, strict=True)]
    values = dice.sample(relation.values, count)
    documents = []
    for name, value, length in zip(names, values, lengths, strict=True):
        told = (f"What follows is about {name}.", relation.by_pronoun.format(value=value))
        documents.append(chunks_of(tokenizer, _planted(tokenizer, next(texts), told, length)))
    which = dice.randrange(count)
    question = relation.question.format(name=names[which])
    built = build_prompt(tokenizer, prompt_format(tokenizer), question)
    answer = relation.sentence.format(name=names[which], value=values[which])
    label = f"asked-{number}-{count}"
    return _prompt(label, built.head_ids, documents, built.tail_ids, tokenizer.encode(answer))


def _planted(tokenizer: Tokenizer, text: str, told: tuple[str, str], length: int) -> TokenIds:
    """About `length` tokens of `text`; the first sentence `told` ends its first chunk or so.

    The second comes after as many others as bring it into the next chunk.
    """
    limit = DocumentLimits().max_chunk_tokens
    sentences = text.replace("\n", " ").split(". ")
    before = ""
    for sentence in sentences:
        longer = f"{before}{sentence}. "
        if len(tokenizer.encode(longer + told[0])) > limit:
            break
        before = longer
    between = before + told[0]
    fillers = iter(FILLERS * 8)
    while len(tokenizer.encode(f"{between} {told[1]}")) <= limit:
        between = f"{between} {next(fillers)}"
    rest = ". ".join(sentences[before.count(". ") :])
    ids = tokenizer.encode(f"{between} {told[1]} {rest}")[:length]
    return (*ids, *tokenizer.encode(DOCUMENT_END))


def _prompt(
    label: str,
    head: TokenIds,
    documents: list[tuple[TokenIds, ...]],
    question: TokenIds,
    answer: list[int] | TokenIds,
) -> Prompt:
    return Prompt(
        name=label,
        head=head,
        passages=tuple(ids for document in documents for ids in document),
        question=question,
        answer=tuple(answer),
        document_chunks=tuple(map(len, documents)),
    )
