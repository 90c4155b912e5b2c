"""Plain Python as it is, or compiled where ENGINE_COMPILED=1 is set: what every address passes through, by mypyc.

1. One source: what is compiled is what is read, tested and shipped as plain Python. docs/performance.md has the gain.
2. It takes a C compiler, mypy and types-PyYAML: `make compiled`, or `pip wheel --no-build-isolation`.
3. Compiled code holds annotations to be true (a value of another type is a TypeError), and keeps a tuple's values, not
   its identity. `make test-compiled` runs the whole suite on it.
"""

import os
from pathlib import Path

from setuptools import setup

HOT = {
    "core": "*",
    "net": "cares dns_cache lookup public resolver session stream",
    "store": "audit database job_tables journal state writer",
    "flow": "closure crew desk dial evidence guard job judged knock line memory output prober run supply survey visit",
}


def extensions() -> list[object]:
    """The extension modules to build; none for plain Python."""
    if os.environ.get("ENGINE_COMPILED") != "1":
        return []
    from mypyc.build import mypycify  # noqa: PLC0415 - only who compiles needs it

    modules = [
        str(path)
        for folder, names in HOT.items()
        for name in names.split()
        for path in sorted(Path("engine", folder).glob(f"{name}.py"))
        if path.name != "__init__.py"
    ]
    return list(mypycify(["--ignore-missing-imports", *modules], opt_level="3", debug_level="0"))


setup(ext_modules=extensions())
