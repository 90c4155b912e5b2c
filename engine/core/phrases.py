"""Many word phrases looked for at once, in one pass over a reply's words.

1. A phrase is words in a row. `a|b` is either word, `..` stands for up to four words that may lie between, and
   `a ~ b` is both words in either order with such a gap. Matching is linear in the text: nothing backtracks.
2. Words are folded first, in text and phrase alike: inflections, spellings and translations become one word
   (`mailboxes`, `Postfach` -> `mailbox`), words without weight (`the`, `is`) are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_GAP = 4  # foreign words between the two sides of `..`: "user bob at example.org unknown"


class _Node:
    __slots__ = ("ends", "gap", "step")

    def __init__(self) -> None:
        self.step: dict[str, _Node] = {}
        self.gap: _Node | None = None  # where a phrase goes on after `..`
        self.ends = 0  # bits of the phrases that are complete here

    def to(self, word: str) -> _Node:
        """Where a phrase goes on after this word."""
        node = self.step.get(word)
        if node is None:
            node = self.step[word] = _Node()
        return node

    def beyond(self) -> _Node:
        """Where a phrase goes on after `..`."""
        if self.gap is None:
            self.gap = _Node()
        return self.gap


class Phrases:
    """A set of phrases, each with a bit; `find` gives the bits of those that occur.

    `vocabulary` folds the phrases' own words; ValueError for a word without weight, which no text can contain.
    """

    def __init__(self, phrases: Iterable[tuple[str, int]], vocabulary: Mapping[str, str]) -> None:
        self._root = _Node()
        self.words: set[str] = set()
        for phrase, bit in phrases:
            for parts in _spell_out(phrase):
                for node in self._grow(parts, vocabulary):
                    node.ends |= bit

    def _grow(self, parts: Sequence[str], vocabulary: Mapping[str, str]) -> list[_Node]:
        """Where the rows of words end that these parts stand for."""
        nodes = [self._root]
        for part in parts:
            if part == "..":
                nodes = [node.beyond() for node in nodes]
                continue
            words = {vocabulary.get(word, word) for word in part.split("|")}
            if "" in words:
                raise ValueError(f"phrase {' '.join(parts)!r} holds a word without weight, so that it can never match")
            self.words |= words
            nodes = [node.to(word) for node in nodes for word in words]
        return nodes

    def find(self, words: Iterable[str]) -> int:
        """The bits of all phrases that occur in `words`, which are folded already."""
        found = 0
        root = self._root.step
        active: list[tuple[dict[str, _Node], int]] = []  # where phrases may go on, and words that may still lie between
        for word in words:
            node = root.get(word)
            if node is None and not active:
                continue
            reached = [] if node is None else [node]
            later = []
            for step, left in active:
                if word in step:
                    reached.append(step[word])
                if left:
                    later.append((step, left - 1))
            for node in reached:
                found |= node.ends
                if node.step:
                    later.append((node.step, 0))
                if node.gap:
                    later.append((node.gap.step, _GAP))
            active = later
        return found


def _spell_out(phrase: str) -> Iterable[Sequence[str]]:
    """The parts of a phrase, in each order in which they may stand."""
    left, both, right = phrase.partition(" ~ ")
    yield [*left.split(), "..", *right.split()] if both else left.split()
    if both:
        yield [*right.split(), "..", *left.split()]


def vocabulary(table: str) -> Mapping[str, str]:
    """Reads `folded: spelling spelling ...` lines, which may go on indented below.

    A word without weight folds to the empty string (`-:` lines).
    """
    words: dict[str, str] = {}
    for line in table.strip().replace("\n ", " ").splitlines():
        folded, spellings = line.split(":")
        target = "" if folded == "-" else folded.strip()
        if target:
            words[target] = target
        for spelling in spellings.split():
            words[spelling] = target
    return words
