"""Verifies mail addresses: asks little, believes only evidence, and stops before it does harm.

1. `import engine` loads nothing: `python -m engine` patches the standard library after this file has run, so whatever
   it loaded would stay unpatched. A public name loads its module when it is first used (PEP 562).
2. What is in `__all__` is the library, described in docs/library.md; every other name may change with any version.
"""

TYPE_CHECKING = False  # type checkers know the name; the one in typing would load typing

if TYPE_CHECKING:
    from engine.core.address import Address, BadAddress, parse
    from engine.core.classify import Judgement, classify
    from engine.core.flags import Flags, flags
    from engine.core.identity import Consent, Identity, Mode
    from engine.core.policy import PolicySet
    from engine.core.reasons import REASONS, Category, Reason, Stage
    from engine.core.result import CatchAll, Result
    from engine.flow.job import Suppression, WrongUse, read_suppression
    from engine.flow.policies import PolicyProblems, load_policies
    from engine.flow.verification import Held
    from engine.identity_file import load_consent, load_identity
    from engine.library import verify
    from engine.settings import SettingsError
    from engine.store.database import StoreError
    from engine.version import VERSION as __version__  # noqa: N811

__all__ = [
    "REASONS",
    "Address",
    "BadAddress",
    "CatchAll",
    "Category",
    "Consent",
    "Flags",
    "Held",
    "Identity",
    "Judgement",
    "Mode",
    "PolicyProblems",
    "PolicySet",
    "Reason",
    "Result",
    "SettingsError",
    "Stage",
    "StoreError",
    "Suppression",
    "WrongUse",
    "__version__",
    "classify",
    "flags",
    "load_consent",
    "load_identity",
    "load_policies",
    "parse",
    "read_suppression",
    "verify",
]

_HOMES = {  # module -> the public names that it holds
    "engine.core.address": ("Address", "BadAddress", "parse"),
    "engine.core.classify": ("Judgement", "classify"),
    "engine.core.flags": ("Flags", "flags"),
    "engine.core.identity": ("Consent", "Identity", "Mode"),
    "engine.core.policy": ("PolicySet",),
    "engine.core.reasons": ("REASONS", "Category", "Reason", "Stage"),
    "engine.core.result": ("CatchAll", "Result"),
    "engine.flow.job": ("Suppression", "WrongUse", "read_suppression"),
    "engine.flow.policies": ("PolicyProblems", "load_policies"),
    "engine.flow.verification": ("Held",),
    "engine.identity_file": ("load_consent", "load_identity"),
    "engine.library": ("verify",),
    "engine.settings": ("SettingsError",),
    "engine.store.database": ("StoreError",),
}


if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ would have every name

    def __getattr__(name: str) -> object:
        """A public name, on first use; later uses find it here without this call."""
        from importlib import import_module  # noqa: PLC0415 - rule 1

        if name == "__version__":
            found: object = import_module("engine.version").VERSION
        else:
            home = next((module for module, names in _HOMES.items() if name in names), None)
            if home is None:
                raise AttributeError(f"module 'engine' has no attribute {name!r}")
            found = getattr(import_module(home), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
