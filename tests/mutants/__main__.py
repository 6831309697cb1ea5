"""`make mutants`: breaks one place of the sources after the other, and says which no test notices.

On a copy of the tree; the tree itself is not touched. Arguments choose places by their files.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from places import places
from trial import ROOT, copied_tree, preload, run_tests, try_mutant, unfit


def main(words: list[str]) -> int:
    """0 if every mutant is killed."""
    chosen = [m for m in places() if not words or any(word in m.file for word in words)]
    errors = unfit(chosen, ROOT)
    if errors or not chosen:
        print("\n".join(errors) or f"no place is in a file with {' or '.join(words)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        preload()
        tree = copied_tree(ROOT, Path(folder))
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        print(
            f"{len(chosen)} mutants; first {len(tests)} test files over the whole sources",
            flush=True,
        )
        whole = run_tests(tree, tests)
        if not whole.passed:
            print(whole.output, "they fail already: mend that first", sep="\n")
            return 1
        outcomes: Counter[str] = Counter()
        for mutant in chosen:
            outcome = try_mutant(tree, mutant)
            outcomes[outcome] += 1
            print(f"{outcome:9} {mutant.place(ROOT):48} {mutant.breaks}", flush=True)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())))
    return int(outcomes["killed"] != len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
