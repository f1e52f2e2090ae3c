"""A stranger's regular expression, followed in bounded time: the patterns of ranks and alphas in peft's config.

Python's `re` backtracks, so that a pattern of thirty characters can take years. Read here are literals, `.`, character
classes, `\\d` and `\\w`, groups, alternation, anchors and repeats, as `re` reads them, by following all positions at once.
Refused: a repeat within a repeat, more than `MAX_REPEATS` of them, more than `MAX_LENGTH` characters, and whatever looks
around, back or at flags. One pattern and name then take time in proportion to the product of their lengths.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from ..errors import NotTestableError
from ..files.text import short


MAX_LENGTH = 128
MAX_REPEATS = 8
_LITERAL = re.compile(r"\^?(?:[\w.-]|\\\.)*\$?", re.ASCII)
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "D": lambda c: not c.isdecimal(),
    "w": lambda c: c.isalnum() or c == "_",
    "W": lambda c: not (c.isalnum() or c == "_"),
}
_Step = Callable[["_Name", int], int]
"""From a set of positions in a name to those that a piece of the pattern can lead to; a set is an integer's bits."""


class _Name:
    """A module's name with the positions of each of its characters."""

    def __init__(self, text: str) -> None:
        self.length = len(text)
        self.where: dict[str, int] = {}
        for n, char in enumerate(text):
            self.where[char] = self.where.get(char, 0) | 1 << n

    def starts(self) -> int:
        """The first position, and whatever follows a dot."""
        return 1 | self.where.get(".", 0) << 1


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.rest, self.repeats = pattern, list(reversed(pattern)), 0

    def refuse(self, why: str) -> NotTestableError:
        return NotTestableError(f"pattern {short(self.pattern)} in the adapter config is not followed: {why}")

    def peek(self) -> str:
        return self.rest[-1] if self.rest else ""

    def take(self) -> str:
        if not self.rest:
            raise self.refuse("it ends too early")
        return self.rest.pop()

    def whole(self) -> _Step:
        step = self.either()
        if self.rest:
            raise self.refuse("a bracket closes that never opened")
        return step

    def either(self) -> _Step:
        branches = [self.sequence()]
        while self.peek() == "|":
            self.take()
            branches.append(self.sequence())

        def step(name: _Name, at: int) -> int:
            found = 0
            for branch in branches:
                found |= branch(name, at)
            return found

        return step

    def sequence(self) -> _Step:
        steps: list[_Step] = []
        while self.peek() not in ("", "|", ")"):
            before, inner = self.repeats, self.atom()
            steps.append(self.repeated(inner, self.repeats > before))

        def step(name: _Name, at: int) -> int:
            for each in steps:
                at = each(name, at)
            return at

        return step

    def atom(self) -> _Step:
        char = self.take()
        if char == "^":
            return lambda name, at: at & 1
        if char == "$":
            return lambda name, at: at & 1 << name.length
        if char == "(":
            return self.group()
        if char == "[":
            return _one_of(self.char_class())
        if char == "\\":
            return _one_of(self.escape())
        if char in "*+?{":
            raise self.refuse(f"{char!r} repeats nothing")
        if char == ".":
            return _one_of(lambda c: c != "\n")
        return _one_of(lambda c: c == char)

    def group(self) -> _Step:
        if self.peek() == "?":
            self.take()
            if self.take() != ":":
                raise self.refuse("groups that look around, name or set flags are left out")
        inside = self.either()
        if self.take() != ")":
            raise self.refuse("a bracket never closes")
        return inside

    def escape(self) -> Callable[[str], bool]:
        char = self.take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.isalnum():
            raise self.refuse(f"\\{char} is left out")
        return lambda c: c == char

    def char_class(self) -> Callable[[str], bool]:
        negated = self.peek() == "^"
        if negated:
            self.take()
        tests: list[Callable[[str], bool]] = []
        while not tests or self.peek() != "]":
            first = self.take()
            if first == "\\":
                tests.append(self.escape())
                continue
            if self.peek() == "-" and len(self.rest) > 1 and self.rest[-2] != "]":
                self.take()
                last = self.take()
                if last == "\\" or last < first:
                    raise self.refuse("a range of characters runs backwards or into an escape")
                tests.append(lambda c, low=first, high=last: low <= c <= high)  # type: ignore[misc]
            else:
                tests.append(lambda c, only=first: c == only)  # type: ignore[misc]
        self.take()
        return lambda c: any(test(c) for test in tests) != negated

    def repeated(self, inner: _Step, loops: bool) -> _Step:
        """`inner` with the repeat that follows it; a `?` asks for no loop, so it may stand around one."""
        least, most = self.bounds()
        if (least, most) == (1, 1):
            return inner
        if most != 1:
            if loops:
                raise self.refuse("a repeat within a repeat")
            self.repeats += 1
            if self.repeats > MAX_REPEATS:
                raise self.refuse(f"it repeats more than {MAX_REPEATS} times")
        return _repeat(inner, least, most)

    def bounds(self) -> tuple[int, int | None]:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self.peek() in simple and self.peek():
            bounds = simple[self.take()]
        elif self.peek() == "{":
            self.take()
            text = ""
            while self.peek() != "}":
                text += self.take()
            self.take()
            match = re.fullmatch(r"(\d{1,4})(,(\d{0,4}))?", text, re.ASCII)
            if match is None:
                raise self.refuse(f"{{{text}}} is no count of repeats")
            low = int(match[1])
            bounds = low, (low if match[2] is None else int(match[3]) if match[3] else None)
        else:
            return 1, 1
        if self.peek() == "?":  # lazy: another order of trying, the same names
            self.take()
        if self.peek() and self.peek() in "*+?{":
            raise self.refuse("a repeat of a repeat")
        return bounds


def _one_of(test: Callable[[str], bool]) -> _Step:
    def step(name: _Name, at: int) -> int:
        found = 0
        for char, where in name.where.items():
            if where & at and test(char):
                found |= where & at
        return found << 1

    return step


def _repeat(inner: _Step, least: int, most: int | None) -> _Step:
    def step(name: _Name, at: int) -> int:
        # More repeats than characters lead nowhere new: each takes a character, or leaves the set as it is.
        for _ in range(min(least, name.length + 1)):
            at = inner(name, at)
        seen = fresh = at
        left = name.length if most is None else most - least
        while fresh and left > 0:
            fresh = inner(name, fresh) & ~seen
            seen, left = seen | fresh, left - 1
        return seen

    return step


@lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a module's name, or a dotted tail of it, matches: peft's `re.match(rf"(.*\\.)?({pattern})$", name)`.

    Raises:
        NotTestableError: the pattern is none of those that are followed here.
    """
    if _LITERAL.fullmatch(pattern):
        found = re.compile(rf"(?:.*\.)?(?:{pattern})$")  # nothing in it repeats, so nothing backtracks
        return lambda name: found.match(name) is not None
    if len(pattern) > MAX_LENGTH:
        raise NotTestableError(
            f"pattern {short(pattern)} in the adapter config has {len(pattern)} characters, followed are {MAX_LENGTH}"
        )
    step = _Parser(pattern).whole()

    def matches(text: str) -> bool:
        name = _Name(text)
        return bool(step(name, name.starts()) & 1 << name.length)

    return matches
