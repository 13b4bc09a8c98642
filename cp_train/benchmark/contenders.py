"""Who competes: a method with its settings, written `method` or `method:key=value:key=value`.

The key of a setting is its path in `LearningConfig` (`cp_train/plan.py`): `weight`, `loop.lr`, `fisher.beta`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from cp_train.methods import METHODS, find_method
from cp_train.plan import LearningConfig
from services.errors import InputError

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(METHODS),
    "study:k": tuple(f"ewc_dc:fisher.earlier={k}" for k in (0, 1, 2, 5, 9)),
    "study:tau": tuple(f"ewc_dc:fisher.tau={tau}" for tau in (0.01, 0.02, 0.05, 0.1, 0.2)),
    "study:trials": tuple(f"ewc_dc:fisher.trials={trials}" for trials in (1, 2, 4)),
    "study:beta": tuple(f"ewc_dc:fisher.beta={beta}" for beta in (0, 0.5, 1)),
}
"""Words that stand for several contenders: every method, and one setting of `ewc_dc` at several values."""
Overrides = Mapping[str, Any]
_COMPOSED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("clora", "clora_shared", "ewc", "ewc_dc", "dsc", "kv"), ("finetune",)),
    **dict.fromkeys(("ewc_vera", "ewc_dc_vera"), ("finetune_vera",)),
    "dsc_ewc": ("dsc", "ewc"),
    "dsc_ewc_dc": ("dsc", "ewc_dc"),
    "ewc_dc_kv": ("ewc_dc", "kv"),
    "dsc_kv": ("dsc", "kv"),
    "dsc_ewc_dc_kv": ("dsc_ewc_dc", "kv"),
}
"""What a method adds something to: whatever is chosen for these is chosen for it, so that terms are what differs."""


def depth(method: str) -> int:
    """How many choices come before a method's own: 0 for one that stands on no other."""
    return 1 + max(map(depth, _COMPOSED[method])) if method in _COMPOSED else 0


def inherited(method: str, chosen: Mapping[str, Overrides]) -> dict[str, Any]:
    """What is chosen for the methods that this one is composed of, then for itself."""
    found: dict[str, Any] = {}
    for part in _COMPOSED.get(method, ()):
        found |= inherited(part, chosen)
    return found | dict(chosen.get(method, {}))


@dataclass(frozen=True)
class Contender:
    """A method and what is set otherwise than the run's settings say; `label` is its name everywhere."""

    label: str
    method: str
    overrides: tuple[tuple[str, Any], ...] = ()

    def config(self, common: LearningConfig, chosen: Overrides) -> LearningConfig:
        """Its settings: the common ones, then those chosen (`inherited`), then its own.

        Raises:
            InputError: there is no such setting, or it does not take the value.
        """
        config = common
        for key, value in {**chosen, **dict(self.overrides)}.items():
            config = _replaced(config, key, value, self.label)
        return config


def parse(specs: Sequence[str]) -> list[Contender]:
    """Contenders of a command line: each word is one, several with commas between, or the name of a group.

    Raises:
        InputError: there is no such method, or a setting is not written `key=value`.
    """
    words = [word for spec in specs for word in spec.split(",") if word]
    named = [name for word in words for name in GROUPS.get(word, (word,))]
    return [_parse(spec) for spec in dict.fromkeys(named)]


def spell(method: str, overrides: Overrides) -> str:
    """The label of a method with some settings."""
    return ":".join([method, *(f"{key}={_plain(value)}" for key, value in overrides.items())])


def _parse(spec: str) -> Contender:
    method, *settings = spec.split(":")
    find_method(method)
    pairs = [setting.partition("=") for setting in settings]
    if bad := [key for key, sign, value in pairs if not (key and sign and value)]:
        raise InputError(f"methods: {spec!r}: write {bad[0]!r} as key=value.", param="methods")
    return Contender(spec, method, tuple((key, _value(value)) for key, _, value in pairs))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _replaced(config: Any, path: str, value: Any, label: str) -> Any:
    """`config` with the setting at a dotted path changed."""
    key, _, rest = path.partition(".")
    known = [field.name for field in fields(config)]
    if key not in known or is_dataclass(getattr(config, key)) != bool(rest):
        raise InputError(f"methods: {label!r}: there is no setting {key!r}; there are {', '.join(known)}.")
    try:
        return replace(config, **{key: _replaced(getattr(config, key), rest, value, label) if rest else value})
    except (TypeError, ValueError) as error:
        raise InputError(f"methods: {label!r}: {error}", param="methods") from error
