"""`make reference`: writes into the docs what is made from the models.

docs/configuration.md      each block of TOML below a line `<!-- qcase schema NAME --toml -->`
docs/schemas/NAME.json     what `qcase schema NAME` prints
share/                     the man page and the completions, which a wheel brings along
"""

from __future__ import annotations

import re
from pathlib import Path

from qcase.config import schema
from qcase.report import results
from tests.tools import manpage

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "configuration.md"

_BLOCK = re.compile(r"(<!-- qcase schema (\w+) --toml -->\n```toml\n).*?(^```$)", re.DOTALL | re.MULTILINE)


def files() -> dict[Path, str]:
    """What is to stand in each file."""
    page = _BLOCK.sub(lambda block: block[1] + schema.toml(block[2]) + block[3], PAGE.read_text(encoding="utf-8"))
    schemas = {ROOT / "docs" / "schemas" / f"{name}.json": schema.json_schema(name) for name in schema.MODELS}
    schemas |= {ROOT / "docs" / "schemas" / f"{name}.json": results.json_schema(name) for name in results.SCHEMAS}
    completions = {ROOT / "share" / path: manpage.completion(shell) for shell, path in manpage.COMPLETIONS.items()}
    return {PAGE: page, ROOT / "share" / "man" / "man1" / "qcase.1": manpage.man_page()} | schemas | completions


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
