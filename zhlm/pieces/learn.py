"""Continued training: pre-token counts of a corpus and a base's merges -> the pieces that come next.

The most frequent adjacent pair becomes a piece, again and again, exactly as if the base's own training had gone on with this corpus. Two
kinds of pairs are passed over: whose product is in the vocabulary already (one piece, two merges: the base's later merges would then apply
in another order than here), and whose product a piece may not be (in byte-level BPE: one that crosses a character with only a part of it).
Characters that the base has no piece for compete with the pairs by the tokens that they save; their pairs wait until they are pieces.

The corpus is one flat array of symbols with links to the neighbours, and each pair knows where it occurs: a merge touches its own
occurrences only, all at once in NumPy. Shape letters: S positions in the array, K occurrences of a pair, E edges around them, G groups of
edges that are the same pair.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from zhlm.pieces.base import Base, Start

Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]

MIN_COUNT = 2
"""A pair that occurs once saves nothing when it is met again."""
ENCODE_BATCH = 20_000


@dataclass(frozen=True)
class Learned:
    """What training added, in order."""

    pieces: list[str]
    merges: list[tuple[str, str] | None]
    """What each piece was merged from; None for a character, which is in the vocabulary and needs no merge."""
    counts: list[int]
    """Tokens that each piece saved when it came: for a merge, how often the pair occurred."""
    num_doubled: int
    """Pairs passed over because their product was a piece already."""
    num_crossing: int
    """Pairs passed over because a piece may not be their product."""
    num_tokens: int = 0
    """Of the corpus before the first piece. WordPiece: with an unknown character as if each byte were one."""
    saved: list[int] = field(default_factory=list)
    """Tokens saved in all when each piece had come; those of a piece that was left out are in the next one's."""
    beyond: list[int] = field(default_factory=list)
    """`saved` for those that would have come next, had they been worth their rows."""

    def without(self, unwanted: Collection[str]) -> "Learned":
        """Without these pieces, and those merged from them."""
        gone = set(unwanted)
        kept = []
        for order, (piece, merge) in enumerate(zip(self.pieces, self.merges, strict=True)):
            if gone.intersection(merge or ()):
                gone.add(piece)
            if piece not in gone:
                kept.append(order)
        return self._only(kept)

    def first(self, num_pieces: int) -> "Learned":
        return self._only(range(min(num_pieces, len(self.pieces))))

    def worth(self, min_gain: float) -> "Learned":
        """The first pieces, while each saved at least this share of the corpus's tokens; the others are `beyond`."""
        enough = min_gain * self.num_tokens
        chosen = next((n for n, count in enumerate(self.counts) if count < enough), len(self.counts))
        return replace(self.first(chosen), beyond=self.saved[chosen:] + self.beyond)

    def _only(self, orders: Sequence[int]) -> "Learned":
        pieces, merges = [self.pieces[n] for n in orders], [self.merges[n] for n in orders]
        saved = [self.saved[n] for n in orders] if self.saved else []
        return replace(self, pieces=pieces, merges=merges, counts=[self.counts[n] for n in orders], saved=saved)


def learn(
    pre_tokens: Mapping[str, int],
    base: Base,
    num_pieces: int,
    tick: Callable[[int], None] = lambda done: None,
    *,
    min_gain: float = 0.0,
) -> Learned:
    """The next `num_pieces` pieces of `base` on these pre-tokens (with counts); fewer when nothing is left that occurs twice, or that saves
    `min_gain` of the corpus's tokens (as the base has them).

    A piece never saves more than the one before it. Ties go to characters and then to the pair with the smaller ids, so the result depends
    on the counts alone.
    """
    wanted = num_pieces
    while True:
        learned = _learn(pre_tokens, base, wanted, min_gain, tick)
        chosen = learned.worth(min_gain)
        unused = [piece for piece, used in zip(chosen.pieces, base.used(chosen.pieces, pre_tokens), strict=True) if not used]
        kept = chosen.without(unused)
        if len(kept.pieces) >= num_pieces or chosen.beyond or len(learned.pieces) < wanted:
            return replace(kept.first(num_pieces), beyond=kept.beyond[: max(0, num_pieces - len(kept.pieces))])
        wanted += 2 * (num_pieces - len(kept.pieces))


def _learn(pre_tokens: Mapping[str, int], base: Base, num_pieces: int, min_gain: float, tick: Callable[[int], None]) -> Learned:
    """Once pieces gain too little, as many again are learned: that shows where the curve goes, and ends with any limit."""
    start = base.start(pre_tokens.keys())
    symbols = {row: piece for piece, row in base.vocabulary.items()} | {symbol: char for char, symbol in start.loose.items()}
    known = {*base.vocabulary, *(added["content"] for added in base.spec["added_tokens"])}
    tape = _Tape.of(pre_tokens, start)
    characters, num_tokens = _gains(tape, base, start)
    next_symbol = max(symbols) + 1
    learned = Learned([], [], [], 0, 0, num_tokens)
    num_doubled = num_crossing = 0
    while len(learned.pieces) < num_pieces:
        if learned.counts and learned.counts[-1] < min_gain * num_tokens:
            num_pieces, min_gain = min(num_pieces, 2 * len(learned.pieces)), 0.0
        top = tape.most_frequent()
        if characters and (top is None or characters[-1][0] >= top[1]):
            gain, symbol = characters.pop()
            tape.release(symbol)
            _append(learned, symbols[symbol], None, gain)
            known.add(symbols[symbol])
            tick(len(learned.pieces))
            continue
        if top is None:
            break
        pair, count = top
        left, right = symbols[pair >> 32], symbols[pair & 0xFFFFFFFF]
        product = base.join(left, right)
        if product in known or not base.may_be_piece(product):
            tape.forget(pair)
            num_doubled += product in known
            num_crossing += product not in known
            continue
        tape.merge(pair, next_symbol)
        symbols[next_symbol] = product
        known.add(product)
        next_symbol += 1
        _append(learned, product, (left, right) if base.MERGES else None, count)
        tick(len(learned.pieces))
    return replace(learned, saved=list(accumulate(learned.counts)), num_doubled=num_doubled, num_crossing=num_crossing)


def _append(learned: Learned, piece: str, merge: tuple[str, str] | None, count: int) -> None:
    learned.pieces.append(piece)
    learned.merges.append(merge)
    learned.counts.append(count)


def _gains(tape: "_Tape", base: Base, start: Start) -> tuple[list[tuple[int, int]], int]:
    """(tokens saved, symbol) of each character that is no piece yet, the best one last; and the tokens of the corpus before all."""
    num_symbols = int(tape.weight_S.sum(dtype=np.int64))
    if not start.loose:
        return [], num_symbols
    occurrences = np.bincount(tape.symbol_S, tape.weight_S).astype(np.int64)
    gains = [(base.loose_gain(char) * int(occurrences[s]), s) for char, s in start.loose.items() if s < len(occurrences)]
    often = sorted([(gain, s) for gain, s in gains if gain and occurrences[s] >= MIN_COUNT], key=lambda g: (g[0], -g[1]))
    return often, num_symbols + sum(gain for gain, _ in gains)


@dataclass
class _Tape:
    """All pre-tokens in a row. A pair (a, b) is the number a << 32 | b."""

    symbol_S: Positions
    """Symbol at each position; -1 where a merge has swallowed it."""
    next_S: Positions
    previous_S: Positions
    """Neighbours inside the same pre-token; -1 at its ends."""
    weight_S: Positions
    """How often the pre-token occurs."""
    counts: dict[int, int] = field(default_factory=dict)
    places: dict[int, Positions] = field(default_factory=dict)
    """Where a pair's left symbol stands; only ever too many, since merges of others may have broken it up."""
    heap: list[tuple[int, int]] = field(default_factory=list)
    """(-count, pair); counts only fall after a pair is pushed, so a stale entry is corrected when it comes up."""
    waiting: dict[int, list[int]] = field(default_factory=dict)
    """Pairs that wait for a symbol to become a piece."""

    @staticmethod
    def of(pre_tokens: Mapping[str, int], start: Start) -> "_Tape":
        words = sorted(pre_tokens)  # the order of the mapping must not matter
        chunks: list[Positions] = []
        lengths: list[int] = []
        for at in range(0, len(words), ENCODE_BATCH):
            encoded = start.encode(words[at : at + ENCODE_BATCH])
            lengths += [len(ids) for ids in encoded]
            chunks.append(np.fromiter(chain.from_iterable(encoded), np.int32))
        symbol_S = np.concatenate(chunks) if chunks else np.empty(0, np.int32)
        sizes = np.asarray(lengths, np.int64)
        ends = np.cumsum(sizes)
        next_S = np.arange(1, len(symbol_S) + 1, dtype=np.int32)
        previous_S = np.arange(-1, len(symbol_S) - 1, dtype=np.int32)
        previous_S[(ends - sizes)[sizes > 0]] = -1
        next_S[(ends - 1)[sizes > 0]] = -1
        weight_S = np.repeat(np.fromiter((pre_tokens[w] for w in words), np.int32, len(words)), sizes)
        tape = _Tape(symbol_S, next_S, previous_S, weight_S, waiting={symbol: [] for symbol in start.loose.values()})
        tape._count_all()
        return tape

    def most_frequent(self) -> tuple[int, int] | None:
        """The pair that occurs most, and how often; None when none occurs MIN_COUNT times."""
        while self.heap:
            negative, pair = self.heap[0]
            count = self.counts.get(pair, 0)
            locked = self._locked(pair) if self.waiting else None
            if count == -negative and locked is None:
                return pair, count
            heapq.heappop(self.heap)
            if locked is not None:
                self.waiting[locked].append(pair)
            elif count >= MIN_COUNT:
                heapq.heappush(self.heap, (-count, pair))
        return None

    def _locked(self, pair: int) -> int | None:
        return next((symbol for symbol in (pair >> 32, pair & 0xFFFFFFFF) if symbol in self.waiting), None)

    def release(self, symbol: int) -> None:
        """A character has become a piece: its pairs no longer wait for it."""
        for pair in self.waiting.pop(symbol):
            if (count := self.counts.get(pair, 0)) >= MIN_COUNT:
                heapq.heappush(self.heap, (-count, pair))

    def forget(self, pair: int) -> None:
        """Never propose this pair again."""
        self.counts.pop(pair, None)
        self.places.pop(pair, None)

    def merge(self, pair: int, symbol: int) -> None:
        """Replace every occurrence of a pair by a new symbol, from left to right where they overlap."""
        left_K = self._occurrences(pair)
        self.forget(pair)
        right_K = self.next_S[left_K]
        before_K, behind_K = self.previous_S[left_K], self.next_S[right_K]
        # Of two merges side by side, the edge between them is the right one's: the left one's behind must not be counted with it.
        last_K = behind_K >= 0
        last_K[:-1] &= behind_K[:-1] != left_K[1:]
        self._remove(before_K[before_K >= 0], pair >> 32, left=False)
        self._remove(behind_K[last_K], pair & 0xFFFFFFFF, left=True)
        self.symbol_S[left_K] = symbol
        self.symbol_S[right_K] = -1
        self.next_S[left_K] = behind_K
        inside = behind_K >= 0
        self.previous_S[behind_K[inside]] = left_K[inside]
        before_K = self.previous_S[left_K]  # read again: beside another merge, it is that one's left
        before_E = before_K[before_K >= 0]
        self._add(self.symbol_S[before_E], before_E, symbol, left=False)
        self._add(self.symbol_S[behind_K[last_K]], left_K[last_K], symbol, left=True)

    def _occurrences(self, pair: int) -> Positions:
        a, b = pair >> 32, pair & 0xFFFFFFFF
        place_K = self.places.pop(pair)
        place_K = place_K[(self.symbol_S[place_K] == a) & (self.next_S[place_K] >= 0)]
        place_K = np.sort(place_K[self.symbol_S[self.next_S[place_K]] == b])
        if a != b or len(place_K) < 2:
            return place_K
        # In a run such as aaa the second pair starts inside the first one: keep every other of a chain.
        chained = np.concatenate([[False], place_K[1:] == self.next_S[place_K[:-1]]])
        order_K = np.arange(len(place_K))
        chain_start_K = np.maximum.accumulate(np.where(chained, 0, order_K))
        kept: Positions = place_K[(order_K - chain_start_K) % 2 == 0]
        return kept

    def _count_all(self) -> None:
        """Count the pairs of the whole array, of one left symbol after the other: memory for a sort of them all is not needed."""
        place_E = np.flatnonzero(self.next_S >= 0).astype(np.int32)
        place_E = place_E[np.argsort(self.symbol_S[place_E], kind="stable")]
        left_E = self.symbol_S[place_E]
        bounds = [*np.flatnonzero(np.diff(left_E, prepend=-1)).tolist(), len(place_E)]
        for start, stop in pairwise(bounds):
            at_E = place_E[start:stop]
            self._add(self.symbol_S[self.next_S[at_E]], at_E, int(left_E[start]), left=True)

    def _remove(self, neighbour_E: Positions, symbol: int, *, left: bool) -> None:
        """Uncount the pairs of a symbol, the `left` one of each or the right one, with the neighbours at these places."""
        others_G, _, _, totals_G = self._groups(self.symbol_S[neighbour_E], neighbour_E)
        counts = self.counts
        for other, total in zip(others_G.tolist(), totals_G.tolist(), strict=True):
            pair = symbol << 32 | other if left else other << 32 | symbol
            if pair in counts:  # not a forgotten one
                counts[pair] -= total

    def _add(self, other_E: Positions, place_E: Positions, symbol: int, *, left: bool) -> None:
        """Count the pairs of a symbol with others, at the places of their left ones; none of them has been counted before."""
        others_G, bounds_G1, place_E, totals_G = self._groups(other_E, place_E)
        often = np.flatnonzero(totals_G >= MIN_COUNT)
        starts, stops = bounds_G1[:-1][often].tolist(), bounds_G1[1:][often].tolist()
        for other, start, stop, total in zip(others_G[often].tolist(), starts, stops, totals_G[often].tolist(), strict=True):
            pair = symbol << 32 | other if left else other << 32 | symbol
            self.counts[pair] = total
            self.places[pair] = place_E[start:stop]
            heapq.heappush(self.heap, (-total, pair))

    def _groups(self, other_E: Positions, place_E: Positions) -> tuple[Ints, Ints, Positions, Ints]:
        """Places grouped by symbol: the symbols, where each group begins and the last ends, the places in that order, summed weights.

        A place belongs to the pre-token of its neighbours, so it has the weight of the pair.
        """
        code_E = other_E.astype(np.int64) << 32 | place_E
        code_E.sort()  # of plain numbers: several times faster than an argsort
        sorted_E, place_E = code_E >> 32, (code_E & 0xFFFFFFFF).astype(np.int32)
        starts_G: Ints = np.flatnonzero(np.diff(sorted_E, prepend=-1))
        totals_G: Ints = np.add.reduceat(self.weight_S[place_E], starts_G, dtype=np.int64) if len(starts_G) else starts_G
        return sorted_E[starts_G], np.append(starts_G, len(place_E)), place_E, totals_G
