"""Check what README.md, CONTRIBUTING.md and docs/*.md say against the repository.

Every link and its anchor, every file, make target and flag must exist, and every section of README.md and
docs/results.md with a measured figure must name a command. Every message that docs/troubleshooting.md quotes must be a
script's.
"""

import ast
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_FIGURES = ("README.md", "results.md")
MADE = ("data", "checkpoints", "runs", "engines", "predictions", "recording")  # folders of commands and users
SOURCES = ("py", "sh", "slurm", "md", "toml", "csv", "json", "txt", "safetensors")
FIGURE = re.compile(r"\d+(?:\.\d+)?\s?(?:m|mm|ms|MB|GB|TB|MiB|%|frames/s|images/s|GMAC|M parameters)\b|\b0\.\d\d+\b")
WORKERS = 2  # processes that print their --help at once; most of them import PyTorch
OTHER_FLAGS = {"--editable", "--nproc-per-node", "--signals-to-handle", "--array", "--help"}  # of pip, torchrun, sbatch
COMMAND = re.compile(r"\b(?:python3?|make|pytest|pip|sbatch|bash|torchrun|du)\b")
RUNNERS = ("python", "python3", ".venv/bin/python", "torchrun")


def main() -> int:
    """Print each fault with its page and line; returns the exit code, 1 if there is one."""
    faults = [fault for page in PAGES for fault in check_page(page, page.read_text(encoding="utf-8"))]
    print("\n".join(faults) or f"{len(PAGES)} pages: links, files, targets, flags and commands are right")
    return 1 if faults else 0


def check_page(page: Path, text: str) -> list[str]:
    """Faults in the text of a page, each '<page>, line <n>: <what>'."""
    faults, lines = [], text.splitlines()
    fenced = False
    for number, line in enumerate(lines, 1):
        fenced ^= line.startswith("```")
        code = [line] if fenced or line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        found = [fault for target in re.findall(r"\]\(([^)\s]+)\)", line) for fault in check_link(page, target)]
        for part in code:
            found += [*check_files(part), *check_targets(part), *check_flags(part)]
        faults += [f"{page.relative_to(ROOT)}, line {number}: {fault}" for fault in found]
    if page.name == "troubleshooting.md":
        quoted = [row.split("|")[1] for row in lines if row.startswith("| `")]
        missing = [message for cell in quoted for message in re.findall(r"`([^`]+)`", cell) if not is_message(message)]
        faults += [f"{page.relative_to(ROOT)}: no script prints {message!r}" for message in missing]
    if page.name in WITH_FIGURES:
        faults += [f"{page.relative_to(ROOT)}: {fault}" for fault in check_figures(lines)]
    return faults


def check_link(page: Path, target: str) -> list[str]:
    """Whether a relative link leads to a file, and its anchor to a heading."""
    if re.match(r"[a-z]+:", target):
        return []
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists():
        return [f"link to {name}, which does not exist"]
    if anchor and anchor not in anchors(file):
        return [f"link to #{anchor}, which is no heading of {file.name}"]
    return []


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def check_files(code: str) -> list[str]:
    """Whether the files of the repository that code names exist."""
    missing = []
    for word in re.findall(r"(?<![\w/.$<>*~-])(?:\./)?[\w.-]+(?:/[\w.*-]+)*/?(?![\w/<>*$])", code):
        first = word.removeprefix("./").split("/")[0]
        in_repository = (ROOT / first).exists() if "/" in word else word.rpartition(".")[2] in SOURCES
        if first in MADE or not in_repository or "*" in word:
            continue
        if "/" in word and not (ROOT / word).exists() or "/" not in word and word not in known_names():
            missing.append(f"{word} does not exist")
    return missing


@cache
def known_names() -> set[str]:
    """Names of the repository's files, and those that its sources mention: files that scripts read and write."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    names = {path.name for path in paths}
    for path in paths:
        if path.suffix in (".py", ".sh", ".slurm", ".toml") and path.is_file() and path != Path(__file__).resolve():
            names |= set(re.findall(r"[\w.-]+\.(?:" + "|".join(SOURCES) + r")\b", path.read_text(encoding="utf-8")))
    return names | {"photo.jpg"}


def check_targets(code: str) -> list[str]:
    """Whether the Makefile has the targets that code names."""
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code)
    return [f"make has no target {name}" for name in named if name not in known]


def check_flags(code: str) -> list[str]:
    """Whether a script takes the flags of its command line, and whether any script has a flag that stands alone."""
    words = code.split("#")[0].split()
    scripts = [word for word in words if word.endswith(".py") and (ROOT / word).is_file()]
    flags = [word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z0-9-]*(=.*)?", word)]
    started = any(word in RUNNERS for word in words)
    if scripts and started and "pytest" not in words:
        at = words.index(scripts[0])
        taken = [word.split("=")[0] for word in words[at:] if word.startswith("--")]
        return [f"{scripts[0]} has no flag {flag}" for flag in taken if flag not in flags_of(scripts[0])]
    return [f"no script has the flag {flag}" for flag in flags if flag not in all_flags()]


@cache
def flags_of(script: str) -> set[str]:
    """The flags that a script's --help lists."""
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{script} --help failed: {done.stderr.strip()}")
    return set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))


@cache
def all_flags() -> set[str]:
    """The flags of all scripts, Python or shell, and those of the programs that the pages name."""
    paths = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if path.parent.name not in ("docs", "tests")]
    scripts = [str(path.relative_to(ROOT)) for path in paths if "__main__" in path.read_text(encoding="utf-8")]
    with ThreadPoolExecutor(WORKERS) as pool:
        flags = set().union(*pool.map(flags_of, scripts))
    for path in (*ROOT.glob("*.sh"), *ROOT.glob("*.slurm"), *ROOT.glob("*/*.sh"), *ROOT.glob("*/*.slurm")):
        flags |= set(re.findall(r"--[a-z][a-z0-9-]*", path.read_text(encoding="utf-8")))
    return flags | OTHER_FLAGS


def is_message(quoted: str) -> bool:
    """Whether a script has this message; '...' and a number stand for whatever it fills in."""
    pattern = re.sub(r"(?<=\\ )\d+(?=\\ )", "\0", re.escape(quoted).replace(r"\.\.\.", "[^\n]*?"))
    return re.search(pattern, all_messages()) is not None


@cache
def all_messages() -> str:
    """The texts in the scripts' sources, one a line, with a NUL for each value that is filled in."""
    texts = []
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")):
        if path.parent.name not in ("docs", "tests", "benchmarks"):
            texts += [text_of(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    for path in (*ROOT.glob("*.sh"), *ROOT.glob("*.slurm"), *ROOT.glob("*/*.sh"), *ROOT.glob("*/*.slurm")):
        texts.append(re.sub(r"\$\{[^}]*\}|\$\w+", "\0", path.read_text(encoding="utf-8")))
    return "\n".join(texts)


def text_of(node: ast.AST) -> str:
    """The text of a string, an f-string or a sum of them; a NUL for any other expression."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "\0"


def check_figures(lines: list[str]) -> list[str]:
    """Sections that hold a measured figure and no command."""
    faults, title, body = [], "", list[str]()
    for line in [*lines, "# end"]:
        if not line.startswith("#"):
            body.append(line)
            continue
        text = "\n".join(body)
        if (figure := FIGURE.search(text)) and not COMMAND.search(text):
            faults.append(f"section {title!r} has a figure ({figure.group()}) and no command")
        title, body = line.strip("# "), []
    return faults


if __name__ == "__main__":
    sys.exit(main())
