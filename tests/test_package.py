"""Laws of the package: what it loads and when, and that what is installed is what is in the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCES = (
    "engine",
    "policies",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)
DATA = (
    "engine/py.typed",
    "engine/policies/*.yaml",
    "engine/core/data/*",
    "engine/reputation/*.yaml",
    "engine/lab/*.yaml",
    "engine/lab/*.csv",
    "engine/lab/*.pem",
    "engine/lab/policies/*.yaml",
)
ACTS = (
    "gevent",
    "greenlet",
    "socket",
    "_socket",
    "ssl",
    "sqlite3",
    "select",
    "logging",
    "random",
    "asyncio",
    "dns",
    "pydantic",
)
SPARED = (
    "asyncio",
    "dns",
    "email_validator",
    "engine.reputation.checker",
    "engine.reputation.list_file",
    "engine.store.reputation",
    "http",
    "importlib.metadata",
    "prometheus_client",
    "pydantic",
    "requests",
    "rich",
    "structlog",
)

# Says which engine it is and what it reads, from a folder where no engine is.
READS = """
import json, engine
from engine.core.flags import FREE, ROLES, TARGETS
from engine.flow.policies import load_policies, shipped_dir
from engine.lab.spec import load
print(json.dumps({
    "at": engine.__file__, "policies": str(shipped_dir()), "etag": load_policies().etag,
    "lab": sorted(load().domains), "words": [len(FREE), len(ROLES), len(TARGETS)], "version": engine.__version__,
}))
"""


def python(*words: str, cwd: Path, path: Path | None = None) -> str:
    """The output of a new Python, warnings being errors; `path` comes before what is installed."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environ["PYTHONPATH"] = str(path)
    command = [sys.executable, "-W", "error", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environ, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# What it needs


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    """`constraints.txt` has each requirement of setup.cfg, the build's setuptools too, in exactly one version."""
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[0] != "#"]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(pinned) == len(pins)
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split("\n")
    wanted += tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    for each in map(Requirement, filter(None, wanted)):
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


# What is loaded, and when


def test_the_module_and_the_console_script_start_without_a_warning(tmp_path: Path) -> None:
    """gevent patches before anything else is loaded: else it warns, of ssl first of all."""
    script = Path(sys.executable).with_name("engine")
    by_module = python("-m", "engine", "--help", cwd=tmp_path).splitlines()
    by_script = python(str(script), "--help", cwd=tmp_path).splitlines()
    assert by_module[0].startswith("Usage: python -m engine [")
    assert by_script[0].startswith("Usage: engine [")
    assert by_script[1:] == by_module[1:]


def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    """Python imports it before `__main__` can patch; nothing that it loaded would be patched."""
    program = "import sys; before = set(sys.modules); import engine; print(sorted(set(sys.modules) - before))"
    assert python("-c", program, cwd=tmp_path) == "['engine']\n"


def test_core_loads_nothing_that_acts(tmp_path: Path) -> None:
    """All of `engine.core`, used as well as imported: no socket, gevent, database, randomness or log comes with it."""
    modules = [f"engine.core.{path.stem}" for path in (ROOT / "engine" / "core").glob("*.py") if path.stem[0] != "_"]
    program = f"""
import sys
from importlib import import_module
for name in {sorted(modules)}:
    import_module(name)
    found = set({ACTS}) & set(sys.modules)
    assert not found, f"{{name}} loads {{found}}"
from engine import Stage, classify, flags, parse
flags(parse("Ann+x@Exämple.org"))
classify(550, "5.1.1", "No such user", Stage.RCPT)
print(set({ACTS}) & set(sys.modules) or "none")
"""
    assert len(modules) > 20
    assert python("-c", program, cwd=tmp_path) == "none\n"


def test_a_run_loads_only_what_it_uses(tmp_path: Path) -> None:
    """Nothing to log, no terminal, plain addresses, no list to ask: what those take is neither loaded nor resident."""
    (tmp_path / "list.csv").write_text("email\nann@example.org\n")
    words = "verify list.csv -o out.csv --mode standard --no-connect --state state.db --dns 127.0.0.1:1"
    program = f"""
import sys
sys.argv = ["engine", *"{words}".split()]
from engine.__main__ import main
try:
    main()
finally:
    print("loaded:", *sorted(set({SPARED}) & set(sys.modules)))
"""
    assert python("-c", program, cwd=tmp_path).splitlines()[-1] == "loaded:"


# What is shipped


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist made of a copy of the checkout, and the wheel made of that sdist, unpacked to `wheel`."""
    folder = tmp_path_factory.mktemp("built")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "copy" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "copy" / name)
    command = [sys.executable, "-m", "build", "--outdir", str(folder), *_isolation(), str(folder / "copy")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "wheel")
    return folder


def _isolation() -> list[str]:
    """Nothing is fetched where the build backend is installed already, as new as pyproject.toml wants it."""
    try:
        return ["--no-isolation"] if int(version("setuptools").split(".")[0]) >= 70 else []
    except PackageNotFoundError:
        return []


def data(root: Path) -> dict[str, bytes]:
    """Every data file below a root, by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for pattern in DATA for path in root.glob(pattern)}


def test_the_wheel_has_every_data_file_as_it_is_in_the_checkout(built: Path) -> None:
    """With the same bytes, and none that the checkout doesn't have."""
    shipped = data(built / "wheel")
    assert shipped == data(ROOT)
    assert {Path(name).parent.as_posix() for name in shipped} == {
        "engine", "engine/policies", "engine/core/data", "engine/reputation", "engine/lab", "engine/lab/policies",
    }  # fmt: skip


def test_the_sdist_has_files_where_the_checkout_has_a_link(built: Path) -> None:
    """`engine/policies` leads to `../policies`, outside of the package; who unpacks an sdist gets real files."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist}
        assert (ROOT / "engine" / "policies").is_symlink()
        assert members["engine/policies"].isdir()
        for name, content in data(ROOT).items():
            file = sdist.extractfile(members[name])
            assert members[name].isreg()
            assert file is not None
            assert file.read() == content


def test_every_module_is_shipped_and_nothing_else(built: Path) -> None:
    """The wheel holds the package's modules and data, and no test, bench or leftover."""
    here = {str(path.relative_to(ROOT)) for path in ROOT.glob("engine/**/*.py")} | set(data(ROOT))
    files = {str(path.relative_to(built / "wheel")) for path in (built / "wheel").rglob("*") if path.is_file()}
    assert {name for name in files if ".dist-info/" not in name} == here
    (entry,) = (built / "wheel").glob("*.dist-info/entry_points.txt")
    assert "engine = engine.__main__:main" in entry.read_text("utf-8")


def test_every_installation_reads_its_own_data_and_reads_the_same(built: Path, tmp_path: Path) -> None:
    """The checkout, the editable install that leads to it, and the wheel: same policies, word lists and lab."""
    path_and_home = {"checkout": (ROOT, ROOT), "editable": (None, ROOT), "wheel": (built / "wheel", built / "wheel")}
    reads = {}
    for form, (path, home) in path_and_home.items():
        reads[form] = read = json.loads(python("-c", READS, cwd=tmp_path, path=path))
        assert read.pop("at") == str(home / "engine" / "__init__.py")
        assert read.pop("policies") == str(home / "engine" / "policies")
    assert reads["editable"] == reads["wheel"] == reads["checkout"]


def test_the_wheel_runs_by_itself(built: Path, tmp_path: Path) -> None:
    """`python -m engine` from the unpacked wheel finds the policies that it was shipped with."""
    said = python("-m", "engine", "policy", "explain", "ann@gmail.com", "--offline", cwd=tmp_path, path=built / "wheel")
    assert "gmail" in said
