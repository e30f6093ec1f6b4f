"""The shell commands of the READMEs: each is accepted, up to the point where the work would begin.

Bash runs every block with a `python` that only records its arguments, so that variables, loops and continued lines mean
what a reader's shell makes of them. Then each recorded command parses its arguments and checks its config.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("*/*.md"))]
RECORD = """#!/bin/sh
exec {python} -c 'import json, os, sys; print(json.dumps(sys.argv[1:]), file=open(os.environ["RECORD"], "a"))' "$@"
"""
SILENT = "#!/bin/sh\nexit 0\n"  # of a program that is not ours
PREFIX = (
    '#!/bin/sh\nwhile [ "${1#-}" != "$1" ] || [ "${1#[0-9]}" != "$1" ]; do shift; done\nexec "$@"\n'  # taskset -c 0
)
# Runs in a process without JAX: reads the commands, and prints what each one said unless it was accepted.
CHECK = """
import argparse, json, os, re, runpy, sys
from pathlib import Path

def parsed(parse):
    def then_stop(*arguments, **options):
        parse(*arguments, **options)
        os._exit(0)
    return then_stop

for number, arguments in enumerate(map(json.loads, sys.stdin)):
    for value in re.findall(r"(?:^|=)([\\w./-]*(?:/|DIR)[\\w./-]*)$", "\\n".join(arguments), re.MULTILINE):
        if not value.startswith(("configs/", "launch/", "/")):  # an earlier run, or its file
            path = Path(value)
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.touch()
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        name = arguments.pop(0)
        module = arguments.pop(0) if name == "-m" else None
        sys.argv = [module or name, *arguments]
        if module == "gradalign_jax.main":
            from gradalign_jax import main
            main._parse(sys.argv)
            os._exit(0)
        for method in ("parse_args", "parse_known_args"):
            setattr(argparse.ArgumentParser, method, parsed(getattr(argparse.ArgumentParser, method)))
        runpy.run_module(module, run_name="__main__") if module else runpy.run_path(name, run_name="__main__")
        os._exit(1)
    failed, said = os.waitpid(child, 0)[1], Path(f"{number}.log").read_text()
    if failed and "No module named 'torch'" not in said:  # an extra
        print("python", *sys.argv[1:], *arguments, "\\n", said[-500:])
"""


def blocks(page):
    """Return the shell blocks of a page: fenced ones, and indented ones that call Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return fenced + [
        block for block in indented if re.search(r"^ *(\w+=\S* )*(taskset.* )?python ", block, re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder for PATH in which `python` records its arguments, and nothing else does any work."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = dict.fromkeys(("python", "python3"), RECORD.format(python=shlex.quote(sys.executable)))
    scripts |= dict.fromkeys(("pip", "git", "sbatch", "srun", "rm", "kubectl", "sky"), SILENT)
    scripts |= dict.fromkeys(("taskset", "nice"), PREFIX)
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def recorded(page, programs, folder):
    """Return the arguments of every `python` in a page's blocks."""
    environment = os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "RECORD": str(folder / "record")}
    script = "\n".join(blocks(page))
    subprocess.run(["bash"], input=script, text=True, cwd=folder, env=environment, capture_output=True, timeout=60)
    file = folder / "record"
    lines = file.read_text().splitlines() if file.exists() else []
    ours = [
        arguments for arguments in map(json.loads, lines) if re.search("gradalign_jax|launch/", " ".join(arguments))
    ]
    return [arguments for arguments in ours if arguments[:2] != ["-m", "pip"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_accepted(page, programs, tmp_path):
    commands = recorded(page, programs, tmp_path)
    for name in ("configs", "launch", "gradalign_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    checked = subprocess.run(
        [sys.executable, "-c", CHECK],
        input="\n".join(map(json.dumps, commands)),
        text=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert not checked.stdout + checked.stderr


def test_most_commands_are_found(programs, tmp_path):
    counts = {}
    for page in PAGES:
        (tmp_path / page.replace("/", "_")).mkdir()
        counts[page] = len(recorded(page, programs, tmp_path / page.replace("/", "_")))
    assert counts["README.md"] >= 4
    assert counts["configs/README.md"] >= 20
    assert sum(counts.values()) >= 50
