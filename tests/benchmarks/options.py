"""Options that the papers' scripts share."""

import argparse
from collections.abc import Iterable


def parser(doc: str | None, budgets: Iterable[str], only: Iterable[str]) -> argparse.ArgumentParser:
    """With a budget, parts to measure, and how to try them at a fraction of the cost."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--budget", choices=[*budgets], default="small")
    made.add_argument("--only", choices=[*only], nargs="+", help="instead of all")
    made.add_argument("--seeds", type=int, help="how many, instead of the budget's")
    made.add_argument("--fraction", type=float, default=1.0, help="of the steps")
    made.add_argument("--dry", action="store_true", help="print, and record nothing")
    return made


def show(rows: Iterable[dict]) -> None:
    """Prints rows as they come."""
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
