"""A look at a pickle's opcodes before the unpickler sees them, for what it cannot survive.

The C unpickler trusts three things: a memo index (it allocates and clears that many slots), the hash
of a dict key (tuples nested deep crash it, tuples that repeat each other take forever) and the
process-wide extension registry. None of them is of use to a checkpoint. The scan walks the opcodes
with a stack of weights: how many objects hashing each one would visit.

The opcodes are those of ``Lib/pickletools.py``. Tensor records as ``torch.save`` writes them are skipped at
once (see `pickle_templates`), those with a key many together (see `pickle_records`).
"""

from __future__ import annotations

import pickle
from bisect import bisect_right
from collections.abc import Callable

from ckptdoctor.formats.pickle_opcodes import CALLS, FIXED, GET, GETS, PUSHED, SIZED, STOP, TEXT, TEXTS
from ckptdoctor.formats.pickle_records import Records, Run, indices
from ckptdoctor.formats.pickle_templates import LIGHT
from ckptdoctor.formats.source import Window

BLOCK = 1 << 18
MARGIN = 1 << 12  # opcodes, their arguments and records end within this (long strings are stepped over)
HEAVIEST_KEY = 4000
ENOUGH = 1 << 40
RECORD_WEIGHT = 64  # more than any tuple inside a tensor record weighs
SLACK = 8  # bytes of a pickle for one memo index, at least; torch.save needs more than ten
LONGEST_LINE = 1 << 24
MARK = -1
_PUT_SIZES = {ord("q"): 2, ord("r"): 5}  # with the opcode


class Scan:
    """One pass over the pickle at a window's position. `run` raises UnpicklingError, EOFError or returns."""

    def __init__(self, window: Window) -> None:
        self._read_at = window.read_at
        self._start = self._base = window.position
        self._end = window.end
        self._data = b""
        self._at = 0  # within _data
        self._stop = 0  # refill from here on
        self._stack: list[int] = []
        self._marks: list[int] = []  # where in the stack
        self._memo: dict[int, int] = {}  # all but what runs put there
        self._puts = self._memoized = False
        self._count = 0
        self._bound = 1 << 20  # of memo indices that are always allowed
        self._next = 0  # the memo index that BINPUT gives out next
        self.records = Records(self._memo)
        self._runs: list[tuple[int, Run]] = []  # where each is in the file
        self._bases: list[int] = []
        self._broken: set[int] = set()  # runs into which something refers
        self.end = 0  # behind STOP

    def run(self) -> None:
        """Walk to STOP."""
        while True:
            if self._at >= self._stop:
                self._refill()
            at, data = self._at, self._data
            op = data[at]
            if op in TEXTS:
                if self._key(op):
                    continue
            elif op in GETS:
                args = at + 1 + FIXED[op]
                if data[args : args + 2] == b"((" and self._record_skipped():
                    continue
                if op == GET and at + 1 < len(data):
                    self._push_from_memo(data[at + 1])
                    self._at = at + 2
                    continue
            elif (size := PUSHED.get(op)) and at + size <= len(data):  # most others, in one go
                self._stack.append(1)
                self._at = at + size
                continue
            self._at += 1
            handler = _HANDLERS[op]
            if handler is None:
                if op == STOP:
                    self.end = self._base + self._at
                    return
                raise pickle.UnpicklingError(f"opcode {op:#04x} is unknown, or is none that a file may use")
            handler(self, op)

    def _key(self, op: int) -> bool:
        """A string and its BINPUT or MEMOIZE in one go; by far the most frequent besides records."""
        data, at = self._data, self._at
        if op == 0x8C:
            end = at + 2 + data[at + 1] if at + 1 < len(data) else len(data)
        else:
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        if end + 2 > len(data):
            return False
        put = data[end]
        args = end + _PUT_SIZES.get(put, 0) + 2
        if data[args : args + 2] == b"((" and op == TEXT and self._run_skipped():
            return True
        if put == 0x94:
            self._memo[self._count] = 1
            self._count += 1
            self._memoized = True
            end += 1
        elif put in (0x71, 0x72):
            start, end = end + 1, end + 1 + FIXED[put]
            index = int.from_bytes(data[start:end], "little")
            if end > len(data) or index > self._bound:
                return False
            self._memo[index] = 1
            self._puts = True
            if index >= self._next:
                self._next = index + 1
        self._at = end
        self._stack.append(1)
        return True

    def _refill(self) -> None:
        position = self._base + self._at
        self._data = (
            self._read_at(position, min(BLOCK, self._end - position)) if position < self._end else b""
        )
        if not self._data:
            raise EOFError
        self._base, self._at = position, 0
        last = position + len(self._data) >= self._end
        self._stop = len(self._data) - (0 if last else MARGIN)
        if self._stop <= 0:  # a short read in the middle of the file
            self._stop = len(self._data)
        while position - self._start > SLACK * self._bound:
            self._bound *= 4
            self.records.forget()

    def _run_skipped(self) -> bool:
        """Keys and their tensors, as many as follow each other."""
        run = self.records.run(self._data, self._at, self._next, self._bound)
        if run is None:
            return False
        self._runs.append((self._base + self._at, run))
        self._bases.append(run.base)
        self._at += run.length
        self._stack += [1] * (2 * len(run.kinds))
        self._puts = self._puts or run.next > run.base
        self._next = run.next
        self._one_way()
        return True

    def _record_skipped(self) -> bool:
        """A tensor record, unless it is an odd one."""
        found = self.records.one(self._data, self._at, self._next, self._bound)
        if found is None:
            return False
        self._at += found.length
        self._stack.append(1)
        self._next += found.puts
        self._count += found.memoized
        self._puts = self._puts or found.puts > 0
        self._memoized = self._memoized or found.memoized > 0
        self._one_way()
        return True

    @property
    def runs(self) -> list[tuple[int, Run]]:
        """The runs into which nothing refers, each with its place in the file."""
        return [run for i, run in enumerate(self._runs) if i not in self._broken]

    def _push_from_memo(self, index: int) -> None:
        weight = self._memo.get(index)
        if weight is None:
            self._break_run(index)
            weight = self._memo.get(index, RECORD_WEIGHT)
        self._stack.append(weight)

    def _break_run(self, index: int) -> None:
        """The run that put something there is none any more: its keys are remembered like others."""
        i = bisect_right(self._bases, index) - 1
        if i < 0 or i in self._broken or index >= self._runs[i][1].next:
            return
        self._broken.add(i)
        for key in indices(self._runs[i][1], self.records.kinds):
            self._memo.setdefault(key, 1)

    def _one_way(self) -> None:
        if self._puts and self._memoized:
            raise pickle.UnpicklingError("it numbers its memo in two ways")

    def _take(self, count: int) -> int:
        """The next `count` bytes as a little-endian number."""
        raw = self._data[self._at : self._at + count]
        if len(raw) < count:
            raw = self._read_at(self._base + self._at, count)
            if len(raw) < count:
                raise EOFError
        self._at += count
        return int.from_bytes(raw, "little")

    def _step_over(self, count: int) -> None:
        if self._base + self._at + count > self._end:
            raise EOFError
        self._at += count

    def _line(self) -> bytes:
        found = self._data.find(b"\n", self._at)
        length = BLOCK
        while found < 0:
            position = self._base + self._at
            length = min(2 * length, self._end - position)
            self._data, self._base, self._at = self._read_at(position, length), position, 0
            self._stop = max(1, len(self._data) - MARGIN)
            found = self._data.find(b"\n")
            if found < 0 and (length >= self._end - position or length > LONGEST_LINE):
                raise EOFError
        line = self._data[self._at : found]
        self._at = found + 1
        return line

    def _index(self) -> int:
        try:
            return int(self._line()[:20])
        except ValueError:
            raise pickle.UnpicklingError("a memo index is no number") from None

    def _pop(self, count: int) -> int:
        """Remove that many; the sum of their weights."""
        if len(self._stack) < count:
            raise pickle.UnpicklingError("it takes more from its stack than there is")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        if MARK in taken:
            raise pickle.UnpicklingError("it takes a mark for an object")
        return sum(taken)

    def _to_mark(self) -> list[int]:
        """Remove everything down to the last mark, and that; what it was, in order."""
        if not self._marks:
            raise pickle.UnpicklingError("a mark is missing")
        stack, at = self._stack, self._marks.pop()
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    def _push(self, weight: int) -> None:
        self._stack.append(min(weight, ENOUGH))

    def _hash(self, weights: list[int]) -> None:
        if weights and max(weights) > HEAVIEST_KEY:
            raise pickle.UnpicklingError("a dict key or set member is too large to be one")

    # One method per way in which opcodes use the stack.

    def on_push(self, op: int) -> None:
        """An object of its own, with an argument of fixed size."""
        self._step_over(FIXED.get(op, 0))
        self._stack.append(1)

    def on_sized(self, op: int) -> None:
        """An object with a length in front."""
        self._step_over(self._take(SIZED[op]))
        self._stack.append(1)

    def on_line(self, op: int) -> None:
        """An object as text; a global takes two lines."""
        self._line()
        if op == ord("c"):
            self._line()
        self._stack.append(1)

    def on_nothing(self, op: int) -> None:
        """PROTO, FRAME and BUILD's state."""
        self._step_over(FIXED.get(op, 0))
        if op in b"ab":
            self._pop(1)

    def on_mark(self, op: int) -> None:
        """MARK."""
        self._marks.append(len(self._stack))
        self._stack.append(MARK)

    def on_tuple(self, op: int) -> None:
        """TUPLE1 to TUPLE3."""
        self._push(1 + self._pop(op - 0x84))

    def on_tuple_to_mark(self, op: int) -> None:
        """TUPLE, OBJ and INST."""
        if op == ord("i"):
            self._line()
            self._line()
        self._push(1 + sum(self._to_mark()))

    def on_list(self, op: int) -> None:
        """LIST, APPENDS and POP_MARK: nothing is hashed."""
        self._to_mark()
        if op == ord("l"):
            self._stack.append(1)

    def on_items(self, op: int) -> None:
        """DICT and SETITEMS: every other object is a key."""
        self._hash(self._to_mark()[::2])
        if op == ord("d"):
            self._stack.append(1)

    def on_item(self, op: int) -> None:
        """SETITEM."""
        stack = self._stack
        if len(stack) > 1 and stack[-2] == 1 and stack[-1] != MARK:  # most
            del stack[-2:]
            return
        self._hash(stack[-2:-1])
        self._pop(2)

    def on_set(self, op: int) -> None:
        """ADDITEMS and FROZENSET."""
        members = self._to_mark()
        self._hash(members)
        if op == 0x91:
            self._push(1 + sum(members))

    def on_call(self, op: int) -> None:
        """REDUCE, NEWOBJ, NEWOBJ_EX, STACK_GLOBAL, BINPERSID: what is made is no heavier than its parts."""
        self._push(self._pop(CALLS[op]))

    def on_pop(self, op: int) -> None:
        """POP takes a mark too."""
        if not self._stack:
            raise pickle.UnpicklingError("it takes more from its stack than there is")
        if self._stack.pop() == MARK:
            self._marks.pop()

    def on_dup(self, op: int) -> None:
        """DUP."""
        if not self._stack or self._stack[-1] == MARK:
            raise pickle.UnpicklingError("it doubles what is not there")
        self._stack.append(self._stack[-1])

    def on_put(self, op: int) -> None:
        """PUT, BINPUT, LONG_BINPUT: an index far beyond the pickle's own length is a trap."""
        index = self._index() if op == ord("p") else self._take(FIXED[op])
        if not 0 <= index <= max(1 << 20, 2 * (self._base + self._at - self._start)):
            raise pickle.UnpicklingError(f"memo index {index} is out of all proportion")
        self._puts = True
        self._remember(index)

    def on_memoize(self, op: int) -> None:
        """MEMOIZE: the next index."""
        self._memoized = True
        self._remember(self._count)
        self._count += 1

    def _remember(self, index: int) -> None:
        if self._memoized:
            self._one_way()
        if not self._stack or self._stack[-1] == MARK:
            raise pickle.UnpicklingError("it remembers what is not there")
        weight = self._memo[index] = self._stack[-1]
        if index < self._next and weight > LIGHT:
            self.records.forget()
        if self._puts and index >= self._next:
            self._next = index + 1

    def on_get(self, op: int) -> None:
        """GET, BINGET, LONG_BINGET."""
        index = self._index() if op == ord("g") else self._take(FIXED[op])
        self._push_from_memo(index)


def _handlers() -> list[Callable[[Scan, int], None] | None]:
    by_method: dict[Callable[[Scan, int], None], bytes] = {
        Scan.on_push: bytes(PUSHED),
        Scan.on_sized: bytes(SIZED),
        Scan.on_line: b"ILFSVPc",
        Scan.on_nothing: b"\x80\x95ab",
        Scan.on_mark: b"(",
        Scan.on_tuple: b"\x85\x86\x87",
        Scan.on_tuple_to_mark: b"toi",
        Scan.on_list: b"le1",
        Scan.on_items: b"du",
        Scan.on_item: b"s",
        Scan.on_set: b"\x90\x91",
        Scan.on_call: bytes(CALLS),
        Scan.on_pop: b"0",
        Scan.on_dup: b"2",
        Scan.on_put: b"pqr",
        Scan.on_memoize: b"\x94",
        Scan.on_get: b"ghj",
    }
    table: list[Callable[[Scan, int], None] | None] = [None] * 256
    for method, ops in by_method.items():
        for op in ops:
            table[op] = method
    return table


_HANDLERS = _handlers()
