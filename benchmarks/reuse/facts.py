"""Generated easy questions, in text of our own: one fact in one passage, or a person cut in two.

`needle` cases ask for a fact that stands at the start, the middle or the end of its passage, among
2 to 8 passages in shuffled order. `two-chunk` cases name a person in one chunk and tell the fact in
the next by a pronoun: there a chunk compiled alone can't know whose fact it holds.
"""

import random
from dataclasses import dataclass

from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.wording import worded
from legokv.text.tokenizer import Tokenizer

PLACES = ("start", "middle", "end")
FIRST_NAMES = (
    "Mira",
    "Tobias",
    "Lena",
    "Oscar",
    "Ingrid",
    "Felix",
    "Clara",
    "Hugo",
    "Nora",
    "Emil",
)
LAST_NAMES = ("Tolvan", "Brandt", "Askew", "Pereira", "Lindqvist", "Marsh", "Okoye", "Farrow")


@dataclass(frozen=True)
class Relation:
    """A kind of fact: its sentence, the same with a pronoun, its question, what it may be."""

    sentence: str
    by_pronoun: str
    question: str
    values: tuple[str, ...]


RELATIONS = (
    Relation(
        "The house of {name} stands in {value}.",
        "The house of this person stands in {value}.",
        "In which town does the house of {name} stand?",
        ("Harbrook", "Dunmore", "Eastvale", "Norwick", "Silverton", "Millford", "Ashby", "Kelso"),
    ),
    Relation(
        "The favourite colour of {name} is {value}.",
        "The favourite colour of this person is {value}.",
        "What is the favourite colour of {name}?",
        ("red", "blue", "yellow", "purple", "orange", "white", "black", "brown"),
    ),
    Relation(
        "The dog of {name} is called {value}.",
        "The dog of this person is called {value}.",
        "What is the dog of {name} called?",
        ("Rex", "Biscuit", "Pepper", "Shadow", "Rusty", "Bella", "Max", "Lucky"),
    ),
    Relation(
        "The job of {name} is that of a {value}.",
        "The job of this person is that of a {value}.",
        "What is the job of {name}?",
        ("baker", "teacher", "pilot", "farmer", "nurse", "painter", "lawyer", "sailor"),
    ),
)

FILLERS = (
    "The weather that week was mild and there was little wind.",
    "Many visitors came by train and stayed for a few days.",
    "In the evening people met near the old bridge to talk.",
    "The market opened early and closed before noon.",
    "A new road was finished after several months of work.",
    "Some of the windows had been repaired in the spring.",
    "The river was low and the path beside it was dry.",
    "There was music in the square until late at night.",
)


def needles(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """Case n asks at place n modulo 3, over 2 to 8 passages; the name says which."""
    return [_needle(tokenizer, number) for number in range(num_cases)]


def two_chunks(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """Case n has 2 to 4 people of two chunks each."""
    return [_two_chunk(tokenizer, number) for number in range(num_cases)]


def _needle(tokenizer: Tokenizer, number: int) -> Prompt:
    dice = random.Random(number)
    place, num_passages = PLACES[number % len(PLACES)], dice.randint(2, 8)
    relation, people, values = _drawn(dice, num_passages)
    passages = []
    for name, value in zip(people, values, strict=True):
        lines = dice.sample(FILLERS, 4)
        at = {"start": 0, "middle": 2, "end": 4}[place]
        lines.insert(at, relation.sentence.format(name=name, value=value))
        passages.append(" ".join(lines) + "\n")
    asked = dice.randrange(num_passages)
    question = relation.question.format(name=people[asked])
    label = f"needle-{number}-{place}-{num_passages}"
    return worded(tokenizer, label, passages, question, (values[asked],))


def _two_chunk(tokenizer: Tokenizer, number: int) -> Prompt:
    dice = random.Random(10_000 + number)
    relation, people, values = _drawn(dice, dice.randint(2, 4))
    passages = []
    for name, value in zip(people, values, strict=True):
        fillers = dice.sample(FILLERS, 4)
        passages.append(" ".join((*fillers[:2], f"What follows is about {name}.")))
        passages.append(f" {relation.by_pronoun.format(value=value)} {' '.join(fillers[2:])}\n")
    asked = dice.randrange(len(people))
    question = relation.question.format(name=people[asked])
    return worded(tokenizer, f"two-chunk-{number}", passages, question, (values[asked],))


def _drawn(dice: random.Random, count: int) -> tuple[Relation, list[str], list[str]]:
    """A relation, and as many people with different values of it."""
    relation = dice.choice(RELATIONS)
    first, last = dice.sample(FIRST_NAMES, count), dice.sample(LAST_NAMES, count)
    people = [f"{one} {other}" for one, other in zip(first, last, strict=True)]
    return relation, people, dice.sample(relation.values, count)
