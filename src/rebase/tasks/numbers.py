"""Read the number that a text states: signs, currency, LaTeX, separators, fractions, exponents, asides."""

import re
from decimal import Decimal

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_LATEX = (
    (r"\\(?:text\w*|math\w+|mbox|emph)\s*\{([^{}]*)\}", r"\1"),
    (r"(?<=\d)\s*\\[dt]?frac", r" \\frac"),  # a mixed number
    (r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
    (r"\\times|\\cdot|[×·]", "*"),
    (r"\{,\}|,\\!", ","),
    (r"\\!", ""),
    (r"\\[,;: ]", "\u2009"),
    (r"\\([$%#&_])", r"\1"),
    (r"\\[()\[\]]", " "),
    (r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1"),
)

_SIGN = r"[-\u2212\u2013]"
_NUMBER = re.compile(
    # Neither the 2 of "m^2" and "CO2" nor the minus of "10-7" begins a number. Letters of other scripts may precede it.
    rf"""(?P<sign>(?<![\w.)\]]){_SIGN})?(?<![A-Za-zÀ-ÿ\d_.^])(?:
        (?:(?P<whole>\d+)[ ])?(?<![\d/])(?P<numerator>\d+)[ ]?[/\u2044][ ]?(?P<denominator>0*[1-9]\d*)(?![\d/.,]\d|/)
        | (?P<european>\d{{1,3}}(?:\.\d{{3}}){{2,}}(?:,\d+)?(?!\d)  # 1.234.567
            | \d{{1,3}}(?:\.\d{{3}})+,\d+                           # 1.234,5
            | 0,\d+ | \d+,\d{{1,2}}(?=\s?[€%]))
        | (?P<digits>\d{{1,3}}(?:[,'’\u00a0\u2009\u202f]\d{{3}})+(?!\d)(?:\.\d+)?
            | \d{{1,2}}(?:,\d\d)+,\d{{3}}(?!\d)                     # 12,34,567
            | \d{{1,3}}(?:[ ]\d{{3}}){{2,}}(?!\d)
            | [1-9]\d{{0,2}}[ ](?:\d{{3}}(?=\W*\Z)|0\d\d(?!\d))  # 10 500, 10 000 km
            | \d+(?:\.\d+)? | \.\d+)
        (?:[eE](?P<exponent>[-+]?\d{{1,2}})(?!\w) | [ ]?[*x][ ]?10\^(?P<power>[-+]?\d{{1,2}})(?!\d))?
    )""",
    re.VERBOSE,
)
_CURRENCY = r"[A-Z]{0,3}[$€£¥₹]"
_SIGNED_CURRENCY = re.compile(rf"{_SIGN}\s?{_CURRENCY}\s?(?=\.?\d)")
_SIGN_WORD = re.compile(rf"(?<![\d)]\s)\b(?:minus|negative)\s+(?=(?:{_CURRENCY})?\d)", re.IGNORECASE)

# Numbers beside the one that is meant: "(3 each for 4 children)", "not 20", "out of 50".
_ASIDE = re.compile(r"(?<=\w)\s+\((?=\s*=|[^()]*[A-Za-z]{2})[^()]*\)")
_CONTRAST = re.compile(
    rf",?\s?(?:\b(?:and|but)\s+)?\b(?:not|rather\s+than|instead\s+of|out\s+of)\s+(?:{_CURRENCY})?\d[\d,.]*",
    re.IGNORECASE,
)
# The text corrects what it has just stated, or works it out: "25% of 80, which is 20".
_CORRECTION = re.compile(
    r"[.;!?]\s+(?:no|wait|actually|sorry|that\s+is|that['’]s)\b"
    r"|\b(?:which\s+(?:is|equals|makes|gives)|i\.e\.)(?=[^\w\n]*\d[\d,.]*[^\d\n]*\Z)",
    re.IGNORECASE,
)
_BEGINNING = re.compile(
    r"\W*?(?:(?:about|approximately|around|roughly|exactly|only|just|a\s+total\s+of)\s+\W*?)?(?=[-\u2212\u2013]?\.?\d)",
    re.IGNORECASE,
)
_RANGE = re.compile(rf"\s*(?:{_SIGN}|\u2014|\bto\b)\s*(?:{_CURRENCY})?(?=\.?\d)")


def plain_math(text: str) -> str:
    r"""Return the text without LaTeX markup and full-width forms: ``1{,}234`` is 1,234 and ``\frac{1}{2}`` is 1/2."""
    text = text.translate(_FULL_WIDTH)
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    return text


def stated_number(text: str) -> str:
    """Return the number that a statement gives, such as "12 apples (3 each)"; an empty string where there is none.

    That is the number at its beginning, else the last one. Of an equation it is the result, of a range its end, and
    after a correction the last number.
    """
    text = _without_asides(_prepare(text))
    corrections = [match.end() for match in _CORRECTION.finditer(text)]
    if corrections and (corrected := _last(text[corrections[-1] :])):
        return corrected
    sides = [side for side in re.split(r"[=≈]", text) if _NUMBER.search(side)]
    side = next((side for side in reversed(sides) if len(_NUMBER.findall(side)) == 1), sides[0] if sides else "")
    return _first(side) or _last(side)


def unstated_number(text: str) -> str:
    """Return the number that is the first line, else the last number of the text; an empty string where there is none.

    Asides such as "out of 50" count only where there is no other number.
    """
    text = _prepare(text)
    line = re.sub(rf"{_CURRENCY}|[*%]|\.\Z", "", text.strip().partition("\n")[0].strip()).strip()
    if number := _NUMBER.fullmatch(line):
        return _value(number)
    return _last(_without_asides(text)) or _last(text)


def all_numbers(text: str) -> list[str]:
    """Return every number of the text, in order."""
    return [_value(number) for number in _NUMBER.finditer(_prepare(text))]


def _prepare(text: str) -> str:
    return _SIGNED_CURRENCY.sub("-", _SIGN_WORD.sub("-", plain_math(text)))


def _without_asides(text: str) -> str:
    return _CONTRAST.sub("", _ASIDE.sub("", text))


def _first(text: str) -> str:
    """Return the number that the text begins with, but for signs and words such as "about"."""
    beginning = _BEGINNING.match(text)
    number = _NUMBER.match(text, beginning.end()) if beginning else None
    while number and (between := _RANGE.match(text, number.end())):
        number = _NUMBER.match(text, between.end())
    return _value(number) if number else ""


def _last(text: str) -> str:
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else ""


def _value(number: re.Match[str]) -> str:
    """Return a matched number as Python writes it, without an exponent and zeros that stand for no decimals."""
    sign = "-" if number["sign"] else ""
    if number["denominator"]:
        value = Decimal(number["whole"] or 0) + Decimal(number["numerator"]) / Decimal(number["denominator"])
        return sign + f"{value.normalize():f}"
    if number["european"]:
        digits = number["european"].replace(".", "").replace(",", ".")
    else:
        digits = re.sub(r"[^\d.]", "", number["digits"])
    if exponent := number["exponent"] or number["power"]:
        digits = f"{Decimal(digits).scaleb(int(exponent)).normalize():f}"
    return sign + re.sub(r"(?<=\d)\.0+\Z", "", digits)
