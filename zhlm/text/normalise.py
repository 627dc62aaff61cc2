"""One spelling for texts that look the same. Chinese punctuation and full-width forms are content and stay as they are."""

import re
import unicodedata

EDGES = " \t\n"
"""What normalising takes away at both ends."""

_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Line feed and tab are kept; U+FEFF is a byte order mark that ended up inside a text, U+FFFD what a decoder left of a character it could
# not read, a surrogate half of a pair whose other half was lost.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffd-\uffff]")
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffd-\uffff]")
_SPACES = re.compile(" (?<=[^\n ] ) +")  # doubled, and not where a line is indented; begins with a plain space, which is fast to find
_BLANK_LINES = re.compile("\n{4,}")


def normalise(text: str) -> str:
    """Unicode NFC, line feeds for every line end, no control characters, no doubled or trailing spaces, at most two blank lines in a row.

    Idempotent. The tests before the expressions are ten times faster than the expressions, and most texts need none of them; what is
    printable has neither line ends nor controls, and most short texts are, once stripped.
    """
    text = text.strip(EDGES)
    printable = text.isprintable()
    if "\ufffd" in text if printable else _UNWANTED.search(text):
        text = _BREAKS.sub("\n", text)
        text = _CONTROLS.sub("", text)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):  # after the controls, which may stand between letter and accent
        text = unicodedata.normalize("NFC", text)
    if not printable:
        text = text.replace("\u00a0", " ")
    return normalise_spaces(text)


def normalise_spaces(text: str) -> str:
    """The last step of normalising, and the only one for a text whose characters are known to be in order."""
    if "  " in text:
        text = _SPACES.sub(" ", text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip(EDGES)
