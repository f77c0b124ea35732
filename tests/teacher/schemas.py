"""Texts that fit a JSON schema: what a model says that is held to it."""

import math
import re
from hashlib import sha256
from re import _constants, _parser  # type: ignore[attr-defined]  # what a pattern consists of
from typing import Any

_WORDS = """
amber barley candle delta ember falcon garden harbour island juniper kettle lantern meadow needle orchard pebble
quarry river saddle timber umbrella valley willow yonder anchor bridge cotton drummer eagle forest granite hollow
""".split()  # noqa: SIM905


def example(schema: dict[str, Any], seed: str, root: dict[str, Any] | None = None) -> Any:
    """A value that fits the schema; another seed gives other strings and numbers."""
    root = root or schema
    if "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].split("/")[1:]:
            target = target[name]
        return example(target, seed, root)
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return example(schema[name][0], seed, root)
    if "const" in schema:
        return schema["const"]
    number = int.from_bytes(sha256(seed.encode()).digest()[:8])
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    kind = schema.get("type", "string")
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == "object":
        return {name: example(inner, f"{seed}/{name}", root) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        size = max(1, schema.get("minItems", 1))
        return [example(schema["items"], f"{seed}/{place}", root) for place in range(size)]
    if kind in ("integer", "number"):
        low = math.ceil(_told(schema, "minimum") or 0)
        return low + number % (math.floor(_told(schema, "maximum") or low + 999) - low + 1)
    if kind == "boolean":
        return number % 2 == 0
    return _string(schema, number) if kind == "string" else None


def _told(schema: dict[str, Any], name: str) -> Any:
    """A keyword's value; Anthropic's SDK moves those that the API does not take into the description."""
    if name in schema or "description" not in schema:
        return schema.get(name)
    form = r"[{, ]pattern: (.*)\}$" if name == "pattern" else rf"[{{, ]{name}: (-?[\d.]+)"
    found = re.search(form, schema["description"], re.DOTALL)
    return found and (found[1] if name == "pattern" else float(found[1]))


def _string(schema: dict[str, Any], number: int) -> str:
    if pattern := _told(schema, "pattern"):
        return _match(_parser.parse(pattern), number)
    # The number comes first, so that short texts differ as well.
    text = f"{number % 2**32:08x} {_words(number)}"
    text += " " + _words(number) * (int(_told(schema, "minLength") or 0) // 30)
    return text[: int(_told(schema, "maxLength") or len(text))].strip()


def _words(number: int) -> str:
    return " ".join(_WORDS[number >> shift & 31] for shift in range(0, 35, 5))


def _match(parts: Any, number: int) -> str:
    """A text that a parsed pattern matches; long runs of anything become words."""
    text = ""
    for operation, value in parts:
        if operation is _constants.LITERAL:
            text += chr(value)
        elif operation is _constants.BRANCH:
            text += _match(value[1][number % len(value[1])], number // 7)
        elif operation is _constants.SUBPATTERN:
            text += _match(value[3], number)
        elif operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            least, most, inner = value
            kind, what = inner[0]
            anything = kind in (_constants.ANY, _constants.NOT_LITERAL)
            anything |= kind is _constants.IN and what[0][0] is _constants.NEGATE
            long = anything and least <= 20 and most >= 80
            text += _words(number) if long else _match(inner, number) * min(max(least, 1), most)
        elif operation is _constants.IN and value[0][0] is _constants.RANGE:
            low, high = value[0][1]
            text += chr(low + number % (high - low + 1))
        elif operation is _constants.IN and value[0][0] is not _constants.NEGATE:
            digit = value[0] == (_constants.CATEGORY, _constants.CATEGORY_DIGIT)
            text += chr(value[0][1]) if value[0][0] is _constants.LITERAL else str(number % 10) if digit else " "
        elif operation is not _constants.AT:
            text += "a"
    return text
