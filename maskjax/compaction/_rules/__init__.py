"""One rule for each class of primitives. A new primitive is one entry in one table."""

from maskjax.compaction._rules import (
    _bodies,
    _contractions,
    _devices,
    _entries,
    _lookups,
    _moves,
    _parts,
    _sums,
    _windows,
)
from maskjax.compaction._rules._rule import Links, Rule, as_it_is, pin, told, unknown

RULES: dict[str, Rule] = {
    **_entries.RULES,
    **_moves.RULES,
    **_parts.RULES,
    **_sums.RULES,
    **_contractions.RULES,
    **_windows.RULES,
    **_lookups.RULES,
    **_devices.RULES,
    **_bodies.RULES,
}

__all__ = ["RULES", "Links", "Rule", "as_it_is", "pin", "told", "unknown"]
