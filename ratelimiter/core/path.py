"""The one path that a request's target means, and the path that an application routes by."""

from __future__ import annotations

from urllib.parse import quote

from ratelimiter.core.request import MalformedRequest

# RFC 3986 section 3.3, pchar without pct-encoded: written out or encoded, an application sees the same character.
PLAIN_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@"
PLAIN = frozenset(PLAIN_CHARACTERS.encode())
AUTHORITY = frozenset(PLAIN_CHARACTERS.replace("@", "[]%").encode())  # RFC 3986 section 3.2, less the userinfo
HEX = frozenset(b"0123456789ABCDEFabcdef")


def canonical_path(target: bytes, root_path: str = "") -> str:
    """Return the one path that *target* means, in ASCII, without query and *root_path*.

    Encoded plain characters are decoded, all other escapes are upper case (RFC 3986 section 6.2.2), repeated slashes
    are one and dot segments are resolved (section 5.2.4). `*` stays `*` (RFC 9112 section 3.2.4), and of the absolute
    form the path is taken (section 3.2.2).

    Raises:
        MalformedRequest: the target is none of these forms, or holds what servers read differently: a broken or
            overlong escape, an encoded slash, backslash or control character, a raw non-ASCII byte, a fragment.
    """
    path = origin_path(target)
    if path == b"*":
        return "*"
    segments: list[str] = []
    segment = ""
    for raw in path.split(b"/"):
        segment = _canonical_segment(raw)
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    # A trailing slash, or a dot segment at the end, names the directory itself.
    closing = "/" if segments and segment in ("", ".", "..") else ""
    return without_root("/" + "/".join(segments) + closing, root_path)


def origin_path(target: bytes) -> bytes:
    """Return the path of *target* as it was sent, without query; of the absolute form the path, and `*` as it is.

    Raises:
        MalformedRequest: the target is none of these forms.
    """
    path = target.split(b"?", 1)[0]
    return path if path == b"*" or path.startswith(b"/") else _path_of_absolute_form(path)


def _path_of_absolute_form(path: bytes) -> bytes:
    scheme, separator, rest = path.partition(b"://")
    authority, slash, tail = rest.partition(b"/")
    if not separator or not scheme.isalpha() or not authority:
        raise MalformedRequest("path", "must begin with a slash")
    if b"@" in authority:
        raise MalformedRequest("path", "must not carry user information")
    if not AUTHORITY.issuperset(authority):
        raise MalformedRequest("path", "must follow a host and a port")
    return slash + tail or b"/"


def _canonical_segment(raw: bytes) -> str:
    if PLAIN.issuperset(raw):
        return raw.decode("ascii")
    out = bytearray()
    decoded = bytearray()
    position = 0
    while position < len(raw):
        byte = raw[position]
        position += 1
        if byte == 0x25:  # "%"
            digits = raw[position : position + 2]
            if len(digits) < 2 or not HEX.issuperset(digits):
                raise MalformedRequest("path", "has a percent sign without two hexadecimal digits")
            position += 2
            byte = int(digits, 16)
            if byte in b"/\\" or byte < 0x20 or byte == 0x7F:
                raise MalformedRequest("path", "has an encoded slash, backslash or control character")
            out += bytes((byte,)) if byte in PLAIN else b"%%%02X" % byte
        elif byte in PLAIN:
            out.append(byte)
        else:
            raise MalformedRequest("path", "has a character that must be percent-encoded")
        decoded.append(byte)
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise MalformedRequest("path", "is not UTF-8 when decoded") from None
    return out.decode("ascii")


def without_root(path: str, root_path: str) -> str:
    """Return *path* relative to *root_path*, if it is below that."""
    root = quote(root_path.rstrip("/"), safe=PLAIN_CHARACTERS + "/", errors="surrogatepass")
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :] or "/"
    return path


def routed_path(path: str, root_path: str) -> str:
    """Return the routed path as rules spell it: relative to *root_path*, plain characters plain, others encoded."""
    root = root_path.rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :] or "/"
    return quote(path, safe=PLAIN_CHARACTERS + "/", errors="surrogatepass")
