"""Writes the benchmark's tables into the README: `python -m tests.benchmarks.readme_table RESULTS [--readme FILE]`.

They stand between two comments, and whatever stood there goes.
"""

import argparse
import pathlib
from collections.abc import Sequence

from tests.benchmarks.results import Results
from tests.benchmarks.tables import markdown_of
from tests.benchmarks.timing import ROOT

BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


def rewritten(readme: str, table: str) -> str:
    """Returns the text with another table between the comments.

    Raises:
      ValueError: the comments do not stand there once each, in their order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the table goes between {BEGIN} and {END}: write each of them once, in this order")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrites the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path, help="the JSON file of `python -m tests.benchmarks --out`")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md", help="what to rewrite")
    options = parser.parse_args(arguments)
    text = rewritten(options.readme.read_text(), markdown_of(Results.load(options.results)))
    options.readme.write_text(text)


if __name__ == "__main__":
    main()
