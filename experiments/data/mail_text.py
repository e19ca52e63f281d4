"""The words of a mail: of its subject and of its texts, and of nothing else.

Other headers are left out: they name the list, the date and the machine that collected the mail,
and so its class. For the same reason an address becomes one fixed word, a number keeps only its
length, the names of months and days are dropped, and what a list puts in front of a subject or
under a text is cut off.

Everything works on bytes, so that no later version of Python or Unicode can change a word.
"""

import binascii
import re

MAX_LETTERS = 30  # longer runs are encoded data or padding
SUBJECT = b"subject:"
_MAX_DEPTH = 5

_FOLD = re.compile(rb"\n[ \t]+")
_BOUNDARY = re.compile(rb'boundary\s*=\s*(?:"([^"\n]+)"|([^\s;"]+))', re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]*")
_LIST_TAG = re.compile(rb"\[[^\]\n]{1,40}\]")
_ENCODED = re.compile(rb"=\?[^?\s]*\?[bq]\?[^?\n]*\?=", re.IGNORECASE)
_INVISIBLE = re.compile(rb"<!--.*?-->|<(style|script|title)\b.*?</\1\s*>", re.DOTALL)
_URL = re.compile(rb"(?:\bhttps?://|\bftp://|\bmailto:|\bwww\.)[^\s<>\"']+")
_ADDRESS = re.compile(rb"[\w.+=-]+@[\w-]+(?:\.[\w-]+)+")
_MARKUP = re.compile(rb"<[a-z/!?][^<>]*>|&#?[a-z0-9]{1,8};")
_WORD = re.compile(rb"[a-z\x80-\xff]+(?:'[a-z]+)?|[0-9]+|[$!%]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

# What mailing lists put under a text, and everything after it.
_FOOTER = re.compile(
    rb"\n_{30,} *\n.*"
    rb"|\n-{30,} *\nthis (?:sf\.net|sourceforge\.net) e?-?mail is sponsored by.*"
    rb"|\n-{5,}[^\n]{0,5}yahoo! groups sponsor.*"
    rb"|\nto unsubscribe from this group, send an email to.*"
    rb"|\n-- ?\n *irish linux users' group.*"
    rb"|\nhttps?://(?:www\.)?[\w.]+/mailman/listinfo/.*",
    re.DOTALL,
)
# What the collector of news feeds put above a text.
_FEED = re.compile(rb"\A\s*url:[^\n]*\n(?:\s*date:[^\n]*\n)?")
# The names by which the collectors hid the receivers, and the receivers' own machines.
_COLLECTORS = frozenset({b"netnoteinc", b"taint", b"yyyy", b"zzzz", b"zzzzteana"})
# The two classes were collected in different months. "may" stays: it is mostly the verb.
_DATES = frozenset(
    b"jan january feb february mar march apr april jun june jul july aug august sep sept september "
    b"oct october nov november dec december mon monday tue tuesday wed wednesday thu thursday fri "
    b"friday sat saturday sun sunday".split()
)
_LEFT_OUT = _COLLECTORS | _DATES


def words(mail: bytes) -> list[bytes]:
    """The words of a mail's subject (each with `SUBJECT` in front), then those of its texts.

    A word is a run of letters, lower-cased (bytes from 128 up count as letters), a number with
    each digit written 0, or one of $, ! and %. Markup, attachments, and encoded words in the
    subject are left out.

    Args:
        mail: headers, an empty line, and the body, as it was sent.

    Examples:
        >>> words(b"From: a@b.c\\nSubject: [list] Win $500\\n\\nGo to <b>WWW.x.com</b> now!")
        [b'subject:win', b'subject:$', b'subject:000', b'go', b'to', b'urladdress', b'now', b'!']
    """
    headers, body = _split(mail.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    subject = _ENCODED.sub(b" ", _LIST_TAG.sub(b" ", headers.get(b"subject", b"")))
    texts = b"\n".join(_texts(headers, body, _MAX_DEPTH))
    return [SUBJECT + word for word in _words(subject)] + _words(texts)


def _split(message: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Headers by lower-case name (the first of each name), and the body."""
    if message.startswith(b"\n"):
        return {}, message[1:]
    head, _, body = message.partition(b"\n\n")
    headers: dict[bytes, bytes] = {}
    for line in _FOLD.sub(b" ", head).split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return headers, body


def _texts(headers: dict[bytes, bytes], body: bytes, depth: int) -> list[bytes]:
    """The decoded texts of a message, those of all its parts in order."""
    kind = headers.get(b"content-type", b"text/plain").strip().lower()
    if kind.startswith(b"message/"):
        return _texts(*_split(body), depth - 1) if depth else []
    boundary = _BOUNDARY.search(headers.get(b"content-type", b""))
    if kind.startswith(b"multipart/") and boundary:
        parts = _parts(body, boundary[1] or boundary[2])
        if parts:
            return [text for part in parts for text in _texts(*_split(part), depth - 1) if depth]
    elif b"/" in kind and not kind.startswith(b"text/"):
        return []
    return [_decoded(body, headers.get(b"content-transfer-encoding", b"").strip().lower())]


def _parts(body: bytes, boundary: bytes) -> list[bytes]:
    parts = []
    for piece in (b"\n" + body).split(b"\n--" + boundary)[1:]:
        if piece.startswith(b"--"):
            break  # the end: what follows is no part
        parts.append(piece.partition(b"\n")[2])
    return parts


def _decoded(body: bytes, encoding: bytes) -> bytes:
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(body)
    if encoding == b"base64":
        found = _BASE64.match(body)
        code = b"".join(found[0].split()) if found else b""
        code = code[: len(code) - (len(code) % 4 == 1)]  # a single last letter is no byte
        return binascii.a2b_base64(code + b"=" * (-len(code) % 4))
    return body


def _words(text: bytes) -> list[bytes]:
    text = _FEED.sub(b"", _FOOTER.sub(b"", _INVISIBLE.sub(b"", text.lower())))
    text = _ADDRESS.sub(b" mailaddress ", _URL.sub(b" urladdress ", text))
    found = _WORD.findall(_MARKUP.sub(b" ", text).translate(_DIGITS))
    return [word for word in found if len(word) <= MAX_LETTERS and word not in _LEFT_OUT]
