"""Breaks the code on purpose, one small mistake at a time, and shows those that no test sees.

  python tools/mutants.py                     # all of tools/mutants.toml, two at a time
  python tools/mutants.py --only=weights      # those with this regular expression in their file or reason
  python tools/mutants.py --jobs=4

A mistake is an entry of the table: what stands in a file exactly once, what stands there instead, and the tests of
which one must fail then. All these tests are first run on the tree as it is, where they must pass. Then each mistake is
made in a copy of the tree, and its own tests are run there. Exit code 1 if one survives, or if an entry no longer fits.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "mutants.toml"
LEFT_OUT = (".git", ".venv*", ".cache", "runs", "build", "dist", "*.egg-info")  # of the root
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "--color=no", "-o", "addopts=")
SECONDS = 300  # for the tests of one mistake; then they are ended, and have not said no
KILLED, SURVIVED, STALE, SILENT = "killed", "SURVIVED", "STALE", "NO ANSWER"
OUTCOMES = {0: SURVIVED, 1: KILLED}  # by pytest's exit code; with any other no test has failed


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
      file: path from the root of the repository.
      text: what stands in it exactly once.
      becomes: what stands there instead.
      tests: pytest's ids, of which one must fail.
      why: the mistake in a few words.
    """

    file: str
    text: str
    becomes: str
    tests: Sequence[str]
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"

    def made(self) -> str:
        """The file with the mistake in it.

        Raises:
          ValueError: the entry does not fit the file.
        """
        path = ROOT / self.file
        content = path.read_text() if path.is_file() else ""
        if (count := content.count(self.text)) != 1:
            raise ValueError(f"its text is there {count} times, where it must be once: {self.text!r}")
        changed = content.replace(self.text, self.becomes)
        try:
            same = ast.dump(ast.parse(content)) == ast.dump(ast.parse(changed))
        except SyntaxError as error:
            raise ValueError(f"with it the file is no Python: {error}") from None
        if same:
            raise ValueError("with it the file means the same")
        return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression, sought in file and reason")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mistakes at a time (2)")
    arguments = parser.parse_args()
    table = [Mutant(**entry) for entry in tomllib.loads(TABLE.read_text())["mutant"]]
    mutants = [mutant for mutant in table if re.search(arguments.only, str(mutant))]
    if not mutants or arguments.jobs < 1:
        parser.error("--jobs must be 1 or more" if mutants else f"--only={arguments.only} leaves none of {len(table)}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        counts = run(mutants, [_copy(pathlib.Path(folder, str(i))) for i in range(arguments.jobs)])
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{len(mutants)} mistakes: {said}; {time.monotonic() - start:.0f} s")
    return 0 if counts.keys() == {KILLED} else 1


def run(mutants: Sequence[Mutant], copies: Sequence[pathlib.Path]) -> Mapping[str, int]:
    """Makes each mistake in one of the copies, prints what came of it, and counts."""
    counts: collections.Counter[str] = collections.Counter()
    free: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)
    pool = concurrent.futures.ThreadPoolExecutor(len(copies))
    try:
        without = _without(mutants, copies, pool)
        found = pool.map(lambda mutant: _outcome(mutant, without, free), mutants)
        for mutant, (outcome, seconds, reason) in zip(mutants, found, strict=True):
            counts[outcome] += 1
            print(f"{outcome:<10}{seconds:>5.1f} s  {mutant}" + (f"\n    {reason}" if reason else ""), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


def _without(
    mutants: Sequence[Mutant], copies: Sequence[pathlib.Path], pool: concurrent.futures.Executor
) -> Mapping[str, set[str]]:
    """What comes of the tests without any mistake: id, the same without parameters -> outcomes."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    shares = [
        [test for test in tests if test.partition("::")[0] in files[i :: len(copies)]] for i in range(len(copies))
    ]
    runs = zip(copies, filter(None, shares), strict=False)
    found: dict[str, set[str]] = collections.defaultdict(set)
    for code, said in pool.map(lambda run: _pytest(run[0], ["-v", *run[1]], 10 * SECONDS), runs):
        if code not in OUTCOMES:
            raise SystemExit(f"the tests cannot even be run without a mistake:\n{said[-4000:]}")
        for test, outcome in re.findall(r"^(\S+?::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", said, re.MULTILINE):
            for name in (test, test.partition("[")[0]):
                found[name].add(outcome)
    print(f"{len(tests)} tests are named, and were run without a mistake", flush=True)
    return found


def _outcome(
    mutant: Mutant, without: Mapping[str, set[str]], free: "queue.SimpleQueue[pathlib.Path]"
) -> tuple[str, float, str]:
    """What comes of a mistake, in how many seconds, and what there is to say of it."""
    try:
        changed = mutant.made()
    except ValueError as error:
        return STALE, 0.0, str(error)
    for test in mutant.tests:
        outcomes = without.get(test, set())
        if "PASSED" not in outcomes or outcomes & {"FAILED", "ERROR"}:
            return STALE, 0.0, f"{test} does not pass without it: {', '.join(sorted(outcomes)) or 'not run'}"
    copy, start = free.get(), time.monotonic()
    original = (copy / mutant.file).read_text()
    try:
        (copy / mutant.file).write_text(changed)
        code, said = _pytest(copy, ["-x", "-q", *mutant.tests], SECONDS)
    finally:
        (copy / mutant.file).write_text(original)
        free.put(copy)
    outcome = OUTCOMES.get(code, SILENT)
    reason = {KILLED: "", SURVIVED: f"passed: {' '.join(mutant.tests)}", SILENT: f"exit code {code}: {said[-1000:]}"}
    return outcome, time.monotonic() - start, reason[outcome]


def _pytest(copy: pathlib.Path, arguments: Iterable[str], seconds: float) -> tuple[int, str]:
    """Exit code of pytest in a copy of the tree, and what it said; -9 if it had to be ended."""
    # Without compiled files, which Python takes for the source's own where that has changed within a second.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*PYTEST, *arguments], cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):  # it, or processes that its tests have left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read()


def _copy(folder: pathlib.Path) -> pathlib.Path:
    """The tree, without what is no part of it; the compiled programs are those of the tree itself."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in LEFT_OUT):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, folder)
    programs, link = ROOT / ".cache" / "xla", folder / ".cache" / "xla"
    programs.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir()
    link.symlink_to(programs)
    return folder


if __name__ == "__main__":
    sys.exit(main())
