"""Written text as word tokens, and back."""

import re
from collections.abc import Iterable

# Escaped: right quotation mark and apostrophe (2019), left ones (2018, 201c), right double (201d),
# inverted question and exclamation marks (bf, a1), long dash (2014).
_TOKEN = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*|\d+|[^\w\s]|_")
_BEFORE = re.compile(r" +([,.;:?!)\]\u201d\u2019])")
_AFTER = re.compile(r"([(\[\u00bf\u00a1\u201c\u2018]) +")
_AROUND = re.compile(r" *(\u2014) *")


def tokenize(text: str) -> list[str]:
    """Lower-cased words, numbers, and single punctuation marks.

    A hyphen or an apostrophe between letters belongs to its word.

    Examples:
        >>> tokenize("“Don’t fear,” said Ben-hadad: 7 men!")
        ['“', 'don’t', 'fear', ',', '”', 'said', 'ben-hadad', ':', '7', 'men', '!']
    """
    return _TOKEN.findall(text.lower())


def detokenize(tokens: Iterable[str]) -> str:
    """Write tokens as text: marks stand where a printer sets them.

    Examples:
        >>> detokenize(["¿", "quién", "eres", "?", "(", "dijo", ")", "."])
        '¿quién eres? (dijo).'
    """
    return tidy(" ".join(tokens))


def tidy(text: str) -> str:
    """One space between words, none before a mark that closes or after one that opens."""
    text = _BEFORE.sub(r"\1", " ".join(text.split()))
    return _AROUND.sub(r"\1", _AFTER.sub(r"\1", text))
