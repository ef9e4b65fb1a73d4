r"""TAP 13 and 14, KTAP, and kselftest's and KUnit's forms of it.

    KTAP version 1                    a document: version, plan, results, or results and plan
    1..2                              the plan
      KTAP version 1                  a nested document; its lines are indented (kselftest: they begin with `# `)
      # Subtest: epoll
      1..1
      ok 1 wait                       result of `epoll/wait`
    ok 1 epoll                        result of `epoll`, which the nested document belongs to
    not ok 2 futex # TODO not there   a directive: SKIP, TODO, and in KTAP XFAIL, TIMEOUT, ERROR

A document accounts for itself by its plan and by numbers without a gap or a repetition; each nested one by its own (or, of
KUnit, by the counts behind it), and by the result of the test that it belongs to. A second version line at the outermost level
begins another document, which has to account for itself as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Self

from qcase.model import SubtestResult, SubtestStatus
from qcase.results.reader import BAD, LISTED, NOT_RUN_LISTED, OUTPUT_LINE, OUTPUT_LINES, Fault, Reader, inner_test, plain

_VERSION: Final = re.compile(r"K?TAP version \d{1,3}")
_PLAN: Final = re.compile(r"1\.\.(\d{1,9})(?:\s*#\s*(.*))?")
_RESULT: Final = re.compile(r"(ok|not ok)(?:[ \t]+(\d{1,9})(?=\s|\Z))?(?:[ \t]+(.*))?")
_SUBTEST: Final = re.compile(r"# Subtest(?::\s*(.*))?")
_BAIL: Final = re.compile(r"Bail out!\s*(.*)", re.IGNORECASE)
_SKIP: Final = re.compile(r"(?i:SKIP(?:PED|PING)?)(?!\w):?\s*(.*)")
_TODO: Final = re.compile(r"(?i:TODO)(?!\w):?\s*(.*)")
_KERNELS: Final = re.compile(r"(XFAIL|TIMEOUT|ERROR)(?!\w):?\s*(.*)")
_COMMENT: Final = re.compile(r"(?:\A|\s)#\s*")
_TOTALS: Final = re.compile(r"# ([\w.-]{1,100}):((?: (?:pass|fail|xfail|xpass|skip|error|total):\d{1,9})+)")
_COUNT: Final = re.compile(r"\b(\w+):(\d+)")
_ANNOUNCED: Final = re.compile(r"# (selftests: .+)")
_YAML: Final = re.compile(r"( +)---")
_FIRST: Final = frozenset("onKT1#Bb")  # first characters of the protocol's lines
_DEPTH: Final = 16  # maximum depth of nested documents
_ESCAPED: Final = re.compile(r"\\([#\\])")


@dataclass
class _Level:
    """A document, or a nested one. `children`: results of nested documents whose own test has no result yet."""

    indent: int
    name: str = ""
    mark: float | None = None  # time of its last result, or of its beginning
    version: bool = False
    headed: bool = False  # a line of its own named it
    plan: int | None = None
    plan_last: bool = False  # the plan came behind the results
    why_none: str = ""  # the reason that stands beside a plan of 0
    skips_all: bool = False  # a plan of 0 with `# SKIP`
    last: int = 0  # the last number
    count: int = 0
    children: list[SubtestResult] = field(default_factory=list)
    tally: dict[SubtestStatus, int] = field(default_factory=dict)  # of the level's own results
    bare: int = 0  # results right below it, behind `# `, that no plan is for
    told: bool = False  # a summary says how many results it has

    def copy(self) -> _Level:
        return replace(self, children=list(self.children), tally=dict(self.tally))

    @property
    def begun(self) -> bool:
        return self.version or self.plan is not None or self.count > 0 or bool(self.children)

    def lacks(self, plan: str, none: str) -> Iterator[Fault]:
        """Return what it lacks at its end."""
        if self.plan is None:
            if not self.told:
                yield Fault(none)
        elif self.plan != self.count:
            yield Fault(f"{plan} says {self.plan} test{'' if self.plan == 1 else 's'}, {self.count} came")
        if self.children:
            yield Fault(f"results of a nested test came without one of its own: {self.children[0].name}")


class TapReader(Reader):
    """Reads TAP or one of its forms.

    `kernels`: KTAP, where each result has its number and more directives are known. `hashes`: lines of nested documents begin
    with `# `. `comments_follow`: comments behind a failed test are about that test. `lone_needs_no_plan`: of a nested document.
    """

    lone_needs_no_plan = False

    def __init__(self, *, kernels: bool = True, hashes: bool = False, comments_follow: bool = False) -> None:
        super().__init__()
        self._kernels = kernels
        self._hashes = hashes
        self._comments_follow = comments_follow
        self._levels = [_Level(0)]
        self._documents = 0  # documents that ended
        self._announced = ""  # the test that begins, where a runner says so
        self._heading = ""  # name of the next nested document
        self._yaml: int | None = None  # indentation of the YAML block that the line stands in
        self._behind_result = False
        self._after: int | None = None  # index of the result to which the following lines may belong
        self._behind_hash = False  # the line is one of a nested document that begins with `# `

    # --- queries -------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        root = self._levels[0]
        over = root.plan is not None and root.count >= root.plan
        return over and len(self._levels) == 1 and not root.children

    @property
    def running(self) -> str:
        return self._announced or "/".join(level.name for level in self._levels[1:] if level.name)

    def open_tests(self) -> list[SubtestResult]:
        found: list[SubtestResult] = []
        rest: tuple[str, ...] = tuple(self._said)
        prefix = ""
        for number, level in enumerate(self._levels):
            nested = self._levels[number + 1] if number + 1 < len(self._levels) else None
            announced = "" if number else self._announced
            name = (nested.name if nested else "") or announced or str(level.last + 1)
            found += [replace(child, name=plain(f"{prefix}{name}/{child.name}")) for child in level.children]
            begun = bool(nested or announced or level.children)
            own = () if nested else rest
            if begun:
                found.append(inner_test(prefix + name, SubtestStatus.BROKEN, "began and did not end", output=own))
                own = ()
            for left in range(level.last + 1 + begun, (level.plan or 0) + 1)[:NOT_RUN_LISTED]:
                found.append(inner_test(f"{prefix}{left}", SubtestStatus.NOT_RUN, output=own))
                own = ()
            prefix += f"{name}/"
        return found

    def _missing(self) -> Iterator[Fault]:
        if not self.begun:
            return
        for level in self._levels[:0:-1]:
            yield Fault(f"{self._called(level)} began and did not end")
        if self._yaml is not None:
            yield Fault("a YAML block has no end")
        if self._levels[0].begun or not self._documents:
            root = self._levels[0] if len(self._levels) == 1 else replace(self._levels[0], children=[])
            yield from root.lacks("the plan", "no plan (1..N) came")

    def _nothing(self) -> str:
        why = self._levels[0].why_none
        return f"the plan says that no test runs: {why}" if why else super()._nothing()

    def _skips_all(self) -> str:
        return self._nothing() if self._levels[0].skips_all else ""

    def _called(self, level: _Level) -> str:
        at = next(number for number, one in enumerate(self._levels) if one is level)
        name = level.name or (self._announced if at == 1 else "")
        return repr(name) if name else f"the nested test {self._levels[at - 1].last + 1}"

    # --- lines ---------------------------------------------------------------------------------------------------------

    def copy(self) -> Self:
        other = super().copy()
        other._levels = [level.copy() for level in self._levels]
        return other

    def _read(self, line: str, at: float) -> bool:
        text = line.lstrip(" \t")
        indent = len(line[: len(line) - len(text)].expandtabs())
        behind, self._behind_result = self._behind_result, False
        if self._yaml is not None:
            if indent >= self._yaml or not text:
                self._follow(line)
                if text == "..." and indent == self._yaml:
                    self._yaml = None
                return True
            self._yaml = None
            self._fault("a YAML block has no end", line)
        elif behind and (yaml := _YAML.fullmatch(line)):
            self._yaml = len(yaml[1])
            self._follow(line)
            return True
        if text[:1] not in _FIRST:
            self._after = None
            return False
        self._behind_hash = False
        if self._hashes and text.startswith("# "):
            outer, (indent, text) = indent, _unhashed(indent, text)
            self._behind_hash = indent > outer
        if self._structure(line, text, indent, at):
            return True
        if self._comments_follow and self._after is not None and text.startswith("#"):
            self._follow(line)
            return True
        self._after = None
        return False

    def _structure(self, line: str, text: str, indent: int, at: float) -> bool:
        """Process a line of the protocol. Return False if it is none."""
        if found := _RESULT.fullmatch(text):
            return self._result(found, line, indent, at)
        if _VERSION.fullmatch(text):
            self._version(indent, at)
        elif found := _PLAN.fullmatch(text):
            self._plan(int(found[1]), found[2] or "", line, indent, at)
        elif found := _SUBTEST.fullmatch(text):
            self._subtest(plain(found[1] or ""), indent, at)
        elif found := _BAIL.fullmatch(text):
            self.begun = True
            self._fault(f"Bail out! {plain(found[1])}".rstrip(), line)
        elif found := _TOTALS.fullmatch(text):
            self._totals(found[1], found[2], line, indent)
            return False
        else:
            if self._hashes and indent == 0 and (found := _ANNOUNCED.fullmatch(text)):
                self._announced = plain(found[1])
            return False
        return True

    def _follow(self, line: str) -> None:
        """Add a line to the output of the result that it follows."""
        if self._after is None or not self._after < len(self.results):
            return
        result = self.results[self._after]
        if result.status not in (SubtestStatus.PASS, SubtestStatus.SKIP):
            self.results[self._after] = replace(result, output=(*result.output, line[:OUTPUT_LINE])[-OUTPUT_LINES:])

    # --- levels --------------------------------------------------------------------------------------------------------

    def _level(self, indent: int, at: float, *, opens: bool) -> _Level | None:
        """Return the level of lines with this indentation; the levels below it end. Else open one, or return None."""
        if not opens and all(level.indent != indent for level in self._levels):
            return None
        while self._levels[-1].indent > indent:
            self._close()
        if self._levels[-1].indent == indent:
            return self._levels[-1]
        if len(self._levels) >= _DEPTH:
            return None
        self._levels.append(_Level(indent, self._heading, at))
        self._heading = ""
        return self._levels[-1]

    def _close(self) -> None:
        """End the innermost level: what it lacks now, it lacks."""
        called = self._called(self._levels[-1])
        level = self._levels.pop()
        level.told = level.told or (self.lone_needs_no_plan and level.version and level.count == 1)
        for fault in level.lacks(f"the plan of {called}", f"{called} has no plan (1..N)"):
            self._fault(fault.what)

    def _version(self, indent: int, at: float) -> None:
        level = self._level(indent, at, opens=True)
        if level is None:
            return
        self.begun = True
        self._after = None
        if level.begun and len(self._levels) == 1:
            for fault in level.lacks("the plan", "no plan (1..N) came"):
                self._fault(fault.what)
            self._documents += 1
            self._levels[0] = level = _Level(0, mark=at)
        elif level.begun:  # a second nested document of the same test
            self._close()
            level = _Level(indent, self._heading, at)
            self._levels.append(level)
            self._heading = ""
        level.version = True
        level.mark = at

    def _subtest(self, name: str, indent: int, at: float) -> None:
        self.begun = True
        top = self._levels[-1]
        if indent > top.indent and not self._heading:
            level = self._level(indent, at, opens=True)
            if level is not None:
                level.name, level.headed = name, True
        elif indent == top.indent and len(self._levels) > 1 and not (top.headed or top.plan is not None or top.count):
            top.name, top.headed = name, True
        else:
            self._heading = name

    def _plan(self, count: int, comment: str, line: str, indent: int, at: float) -> None:
        if self._is_of_bare(count, indent):
            return
        level = self._level(indent, at, opens=True)
        if level is None:
            return
        self.begun = True
        self._after = None
        if level.plan is not None:
            self._fault(f"a second plan came: {line.strip()}", line)
            return
        level.plan = count
        level.plan_last = level.count > 0
        level.mark = at if level.mark is None else level.mark
        if count == 0:
            found = _SKIP.fullmatch(comment)
            level.why_none = plain(found[1] if found else comment) or "it is 1..0"
            level.skips_all = found is not None

    def _is_of_bare(self, count: int, indent: int) -> bool:
        """Tell whether a plan is that of the results before it, which are comments as far as kselftest knows."""
        top = self._levels[-1]
        return self._behind_hash and indent > top.indent and count == top.bare > 0

    def _totals(self, name: str, counts: str, line: str, indent: int) -> None:
        """Compare a summary with what was counted on its level: kselftest's totals, and those that KUnit says of a suite."""
        said = {key: int(number) for key, number in _COUNT.findall(counts)}
        if "total" in said:  # KUnit's, on the level of the test that it names or of the one around it
            level = next((one for one in self._levels[:0:-1] if one.name == name), None)
        else:
            level = next((one for one in self._levels if one.indent == indent and name == "Totals"), None)
        if level is None:
            return
        level.told = "total" in said
        tally = level.tally
        theirs = {
            "passed": sum(said.get(key, 0) for key in ("pass", "xfail", "xpass")),
            "failed": said.get("fail", 0) + said.get("error", 0),
            "were skipped": said.get("skip", 0),
        }
        ours = {
            "passed": tally.get(SubtestStatus.PASS, 0) + tally.get(SubtestStatus.TODO, 0),
            "failed": sum(tally.get(status, 0) for status in BAD),
            "were skipped": tally.get(SubtestStatus.SKIP, 0),
        }
        for word, number in theirs.items():
            if number != ours[word]:
                self._fault(f"the summary says that {number} {word}, {ours[word]} were counted", line)

    # --- results -------------------------------------------------------------------------------------------------------

    def _result(self, found: re.Match[str], line: str, indent: int, at: float) -> bool:
        good, number, text = found[1] == "ok", found[2], found[3] or ""
        if number is None and self._kernels:
            if not good and not self._behind_hash:
                self.begun = True
                self._fault(f"a result without a number: {line.strip()}", line)
            return False
        level = self._level(indent, at, opens=not self._behind_hash)
        if level is None:
            return self._bare_result(text, line, good=good)
        self.begun = True
        due = level.last + 1
        value = due if number is None else int(number)
        if 0 < value < due:
            self._fault(f"a second result {value} came", line)
        elif value != due:
            self._fault(f"result {value} came where {due} was due", line)
        if level.plan_last:
            self._fault(f"result {value} came behind the plan", line)
        self._heading = ""
        level.bare = 0
        level.last = max(level.last, value)
        level.count += 1
        name, status, reason = _judged(text, good=good, kernels=self._kernels)
        own = name or ("" if level.indent else self._announced) or str(value)
        level.tally[status] = level.tally.get(status, 0) + 1
        mark = self._since if level.mark is None else level.mark
        level.mark = at
        seconds = None if mark is None else at - mark
        children, level.children = level.children, []
        nested = len(children) if len(self.results) + len(children) < LISTED else 0
        result = replace(inner_test(own, status, reason, seconds, self._own_lines()), nested=nested)
        if status is SubtestStatus.TODO:
            children = [replace(child, status=SubtestStatus.TODO) if child.status in BAD else child for child in children]
        children = [replace(child, name=plain(f"{result.name}/{child.name}")) for child in children]
        self._behind_result = not self._behind_hash
        if level is self._levels[0]:
            self._announced = ""
            for one in (*children, result):
                self._add(one)
            self._after = len(self.results) - 1 if status is not SubtestStatus.PASS else None
        else:
            self._levels[-2].children += [*children, result]
            self._after = None
        return True

    def _bare_result(self, text: str, line: str, *, good: bool) -> bool:
        """Take a result of a nested document without a version and a plan before it: a comment, but for one that failed."""
        if not self._behind_hash:
            self.begun = True
            self._fault(f"a test is nested more than {_DEPTH - 1} deep: {line.strip()}", line)
            return False
        self._levels[-1].bare += 1
        name, status, _ = _judged(text, good=good, kernels=self._kernels)
        if status in BAD:
            self.begun = True
            self._fault(f"a nested test failed that no plan is for: {name or line.strip()}", line)
        return False


def _unhashed(indent: int, text: str) -> tuple[int, str]:
    """Return a line's indentation and text, with each `# ` before a line of the protocol as one more step of indentation."""
    rest, width = text, indent
    for _ in range(_DEPTH):
        if not rest.startswith("# "):
            break
        within = rest[2:].lstrip(" \t")  # a nested document may be indented behind the `# ` of its runner
        width += 2 + len(rest[2 : len(rest) - len(within)].expandtabs())
        rest = within
        forms = (_TOTALS, _SUBTEST) if rest.startswith("# ") else (_VERSION, _PLAN, _RESULT, _BAIL)
        if any(form.fullmatch(rest) for form in forms):
            return width, rest
    return indent, text


def _judged(text: str, *, good: bool, kernels: bool) -> tuple[str, SubtestStatus, str]:
    """Return name, status and reason of a result from the text behind its number."""
    comment = _COMMENT.search(text)
    before = text[: comment.start()] if comment else text
    behind = text[comment.end() :].strip() if comment else ""
    directive, status, reason = None, SubtestStatus.PASS if good else SubtestStatus.FAIL, ""
    if comment and (directive := _SKIP.fullmatch(behind)):
        status, reason = SubtestStatus.SKIP, directive[1]
    elif comment and (directive := _TODO.fullmatch(behind)):
        status, reason = SubtestStatus.TODO, directive[1]
    elif comment and kernels and (directive := _KERNELS.fullmatch(behind)):
        status = _KERNELS_MEAN[directive[1]]
        reason = f"{directive[1]} {directive[2]}".strip()
    if directive is None:
        before, _, reason = text.partition(" # ")  # such as `# exit=1`
        reason = "" if good else reason.strip()
    name = _ESCAPED.sub(r"\1", before.strip()).removeprefix("-").strip()
    if not name and directive is not None:  # kselftest puts the name there
        name = directive[directive.lastindex or 0]
    return name, status, reason


_KERNELS_MEAN: Final = {"XFAIL": SubtestStatus.TODO, "TIMEOUT": SubtestStatus.FAIL, "ERROR": SubtestStatus.BROKEN}
