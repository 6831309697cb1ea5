"""Stop words found in a text as it grows, at one price a character however many there are."""

from collections.abc import Sequence


class StopWords:
    """An automaton of words (Aho and Corasick, 1975); never changes, and serves many answers.

    A state is the longest end of the text so far that begins a word. `depths` has its length,
    `ends` the length of the longest word that ends the text there, 0 for none.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]
        self.depths = [0]
        self.ends = [0]
        for word in filter(None, words):
            self._add(word)
        self._find_shorter()

    def __bool__(self) -> bool:
        return len(self._next) > 1

    def step(self, state: int, character: str) -> int:
        """The state after one more character; amortised, one look-up."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _add(self, word: str) -> None:
        state = 0
        for character in word:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depths.append(self.depths[state] + 1)
                self.ends.append(0)
            state = self._next[state][character]
        self.ends[state] = len(word)

    def _find_shorter(self) -> None:
        """For each state the longest shorter one that ends alike, the short states first."""
        states = list(self._next[0].values())
        for state in states:
            for character, longer in self._next[state].items():
                self._shorter[longer] = self.step(self._shorter[state], character)
                self.ends[longer] = self.ends[longer] or self.ends[self._shorter[longer]]
                states.append(longer)


class StopScan:
    """One answer's text on its way through the automaton: what may begin a word is held back.

    Of control tokens only the words see the text: it is never given out.
    """

    def __init__(self, words: StopWords) -> None:
        self.stopped = False
        self._words = words
        self._state = 0
        # A character each, "" for one of a control token.
        self._held: list[str] = []

    def copy(self) -> "StopScan":
        """One that stands where this one stands."""
        other = StopScan(self._words)
        other._state, other._held = self._state, list(self._held)
        return other

    def feed(self, text: str, *, hidden: bool = False) -> str:
        """What is certain after `text`; after the first word, which is left out, nothing more."""
        words, held = self._words, self._held
        for character in text:
            self._state = words.step(self._state, character)
            held.append("" if hidden else character)
            if words.ends[self._state]:
                self.stopped = True
                return self._release(words.ends[self._state])
        return self._release(words.depths[self._state])

    def pass_by(self, text: str) -> str:
        """All that is held and `text`, in which no word begins."""
        held = self._release(0)
        self._state = 0
        return held + text

    def _release(self, num_kept: int) -> str:
        cut = len(self._held) - num_kept
        text = "".join(self._held[:cut])
        del self._held[:cut]
        return text
