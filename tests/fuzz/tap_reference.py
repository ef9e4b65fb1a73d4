"""What a stream of TAP means, slowly and simply: a recursive reading of all its lines. Shares no code with `qcase.results`."""

from __future__ import annotations

from dataclasses import dataclass, field

DIGITS = "0123456789"
WORDS = {"SKIP": "skip", "SKIPPED": "skip", "SKIPPING": "skip", "TODO": "todo"}
TOTALS = ("pass", "fail", "xfail", "xpass", "skip", "error")
KERNELS = {"XFAIL": "todo", "TIMEOUT": "fail", "ERROR": "broken"}


@dataclass
class Item:
    """A line of the protocol. `kind`: version, plan, result, subtest, bail, totals."""

    indent: int
    kind: str
    number: int | None = None
    good: bool = False
    text: str = ""
    hashed: bool = False  # it stands behind `# `


@dataclass
class Meaning:
    tests: list[tuple[str, str]] = field(default_factory=list)  # status and name
    faults: list[str] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        statuses = [status for status, _ in self.tests]
        return not self.faults and "fail" not in statuses and "broken" not in statuses and "pass" in statuses

    @property
    def skips(self) -> bool:
        """All tests are skipped or todo. Where no test came, a plan of 0 may have said so."""
        return not self.faults and {status for status, _ in self.tests} <= {"skip", "todo"}


def number_at(text: str) -> tuple[int | None, str]:
    """A number of at most nine digits at the start of a text that a blank or the end follows, and the rest."""
    count = 0
    while count < len(text) and text[count] in DIGITS:
        count += 1
    if 0 < count <= 9 and (count == len(text) or text[count].isspace()):
        return int(text[:count]), text[count:]
    return None, text


def item_of(indent: int, text: str) -> Item | None:
    """A line of the protocol, or None for a line of output."""
    for start in ("KTAP version ", "TAP version "):
        rest = text.removeprefix(start)
        if rest != text and 0 < len(rest) <= 3 and all(char in DIGITS for char in rest):
            return Item(indent, "version")
    if text.startswith("1.."):
        digits = text[3:]
        count = len(digits) - len(digits.lstrip(DIGITS))
        rest = digits[count:].lstrip()
        if 0 < count <= 9 and (not digits[count:] or rest.startswith("#")):
            return Item(indent, "plan", int(digits[:count]))
    for word in ("not ok", "ok"):
        rest = text.removeprefix(word)
        if rest == text or (rest and rest[0] not in " \t"):
            continue
        number, behind = number_at(rest.lstrip(" \t"))
        return Item(indent, "result", number, word == "ok", behind.strip())
    if text == "# Subtest" or text.startswith("# Subtest:"):
        return Item(indent, "subtest", text=text.partition(":")[2].strip())
    if text.lower().startswith("bail out!"):
        return Item(indent, "bail")
    if text.startswith("# Totals: "):
        pairs = [pair.partition(":") for pair in text.removeprefix("# Totals: ").split(" ")]
        if all(key in TOTALS and 0 < len(number) <= 9 and not number.strip(DIGITS) for key, _, number in pairs):
            return Item(indent, "totals", text=text.removeprefix("# Totals: "))
    return None


def items_of(lines: list[str], dialect: str, meaning: Meaning) -> list[Item]:
    """The lines of the protocol. Blocks of YAML behind a result are left out."""
    items: list[Item] = []
    at = 0
    behind_result = False
    while at < len(lines):
        line = lines[at].rstrip()
        indent = len(line) - len(line.lstrip(" "))
        text = line[indent:]
        if behind_result and indent and text == "---":
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or indent_of(lines[end]) >= indent):
                if lines[end].strip() == "..." and indent_of(lines[end]) == indent:
                    break
                end += 1
            ended = end < len(lines) and lines[end].strip() == "..." and indent_of(lines[end]) == indent
            if not ended:
                meaning.faults.append("yaml")
            at = end + 1 if ended else end
            behind_result = False
            continue
        item = item_of(indent, text)
        if dialect == "kselftest":
            item = item or hashed(indent, text)
        behind_result = item is not None and item.kind == "result" and (item.number is not None or dialect == "tap")
        behind_result = behind_result and item is not None and not item.hashed
        if item is not None:
            items.append(item)
        at += 1
    return items


def hashed(indent: int, text: str) -> Item | None:
    """A line of a nested document of kselftest, whose lines begin with `# `, and may be indented behind that."""
    while text.startswith("# "):
        shown = text[2:].expandtabs()
        indent += 2 + indent_of(shown)
        text = shown.lstrip(" ")
        item = item_of(indent, text)
        if item is not None:
            item.hashed = True
            return item
    return None


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


class Reading:
    """Reads items from the first to the last. Each level is a call of `block`."""

    def __init__(self, items: list[Item], dialect: str, meaning: Meaning) -> None:
        self.items = items
        self.at = 0
        self.dialect = dialect
        self.meaning = meaning
        self.announced = False  # a Subtest line named the next nested document
        self.open: list[int] = []  # indentations of the documents around this place
        self.owns: dict[int, list[str]] = {}  # the statuses of each of these documents so far, by its indentation

    def fault(self, what: str) -> None:
        self.meaning.faults.append(what)

    def whole(self) -> None:
        """Read all documents."""
        while True:
            self.meaning.tests += self.block(0, outermost=True)
            if self.at >= len(self.items):
                break

    def may_open(self, item: Item) -> bool:
        if item.kind == "result":
            return not item.hashed
        if item.kind == "subtest":
            return not self.announced
        return item.kind in ("version", "plan")

    def block(self, indent: int, *, outermost: bool = False) -> list[tuple[str, str]]:
        """Read the items of one document; return its tests, with nested ones before those that they belong to."""
        tests: list[tuple[str, str]] = []
        nested: list[tuple[str, str]] = []
        own: list[str] = []
        plan: int | None = None
        late = versioned = False
        last = count = bare = 0
        first = True
        self.announced = self.announced and outermost
        self.open = [at for at in self.open if at < indent] + [indent]
        self.owns = {at: statuses for at, statuses in self.owns.items() if at < indent} | {indent: own}
        while self.at < len(self.items):
            item = self.items[self.at]
            if item.kind == "bail":
                self.fault("bail")
                self.at += 1
                continue
            if item.kind == "totals":
                self.at += 1
                if item.indent in self.owns:  # also of a document around this one
                    self.totals(item.text, self.owns[item.indent])
                continue
            if item.kind == "result" and item.number is None and self.dialect != "tap":
                if not item.good and not item.hashed:
                    self.fault("not ok without a number")
                self.at += 1
                continue
            self.open = [at for at in self.open if at <= indent]
            if item.kind == "result" and item.hashed and item.indent not in self.open:
                self.at += 1  # a comment that looks like a result
                bare += 1
                if judged(item, self.dialect)[0] in ("fail", "broken"):
                    self.fault("a failed comment")
                continue
            if item.kind == "plan" and item.hashed and item.indent > indent and item.number == bare > 0:
                self.at += 1
                continue
            if item.kind == "subtest" and (item.indent <= indent or self.announced):
                # It names this document if nothing but its version came, or the next one.
                named = item.indent == indent and not outermost and first
                if not named:
                    self.announced = bool(item.text)  # one without a name takes back the name before it
                self.at += 1
                first = False if named else first
                continue
            if item.indent > indent:
                if not self.may_open(item):
                    self.at += 1
                    continue
                nested += self.block(item.indent)
                continue
            if item.indent < indent:
                break
            if item.kind == "version":
                if versioned or plan is not None or count or nested:
                    break  # another document begins
                versioned = True
                self.at += 1
                continue
            self.at += 1
            if item.kind == "plan":
                first = False
                if plan is not None:
                    self.fault("a second plan")
                else:
                    plan, late = item.number, count > 0
            elif item.kind == "result":
                first = self.announced = False
                number = last + 1 if item.number is None else item.number
                if number != last + 1:
                    self.fault("numbers")
                if late:
                    self.fault("behind the plan")
                last, count, bare = max(last, number), count + 1, 0
                status, name = judged(item, self.dialect)
                name = name or str(number)
                if status == "todo":
                    nested = [("todo" if one in ("fail", "broken") else one, called) for one, called in nested]
                tests += [(one, f"{name}/{called}") for one, called in nested]
                tests.append((status, name))
                own.append(status)
                nested = []
        if not outermost and self.at >= len(self.items):
            self.fault("nested tests that did not end")
        if nested:
            self.fault("nested tests without their own result")
        if plan is None:
            self.fault("no plan")
        elif plan != count:
            self.fault("the plan is not met")
        del self.owns[indent]
        return tests

    def totals(self, text: str, own: list[str]) -> None:
        said = {key: int(number) for key, _, number in (pair.partition(":") for pair in text.split(" "))}
        passed = said.get("pass", 0) + said.get("xfail", 0) + said.get("xpass", 0)
        failed = said.get("fail", 0) + said.get("error", 0)
        ours = [sum(status in group for status in own) for group in (("pass", "todo"), ("fail", "broken"), ("skip",))]
        if [passed, failed, said.get("skip", 0)] != ours:
            self.fault("totals")


def judged(item: Item, dialect: str) -> tuple[str, str]:
    """Status and name of a result."""
    text = item.text
    mark = next((at for at, char in enumerate(text) if char == "#" and (at == 0 or text[at - 1].isspace())), -1)
    status = "pass" if item.good else "fail"
    word, why, before = "", "", text
    if mark >= 0:
        behind = text[mark + 1 :].strip()
        end = 0
        while end < len(behind) and (behind[end].isalnum() or behind[end] == "_"):
            end += 1
        word, why = behind[:end], behind[end:].removeprefix(":").strip()
        means = WORDS.get(word.upper()) or (KERNELS.get(word) if dialect != "tap" else None)
        if means is None:
            word, before = "", text.partition(" # ")[0]
        else:
            status, before = means, text[:mark]
    name = ""
    at = 0
    before = before.strip()
    while at < len(before):
        at += before[at] == "\\" and before[at + 1 : at + 2] in ("#", "\\")
        name += before[at]
        at += 1
    name = name.removeprefix("-").strip()
    return status, name or (why if word else "")


def distinct(tests: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The tests with a number behind each name that came before."""
    found: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    for status, name in tests:
        wanted = name
        while wanted in seen:
            seen[name] += 1
            wanted = f"{name} ({seen[name]})"
        seen[wanted] = 1
        found.append((status, wanted))
    return found


def meaning_of(lines: list[str], dialect: str) -> Meaning:
    """What a program's lines mean."""
    meaning = Meaning()
    Reading(items_of(lines, dialect, meaning), dialect, meaning).whole()
    meaning.tests = distinct(meaning.tests)
    return meaning
