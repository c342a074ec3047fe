"""Header compression (RFC 7541): all of it in reading; in writing literals alone, which leave no state behind."""

from __future__ import annotations

from ratelimiter.service.grpc import huffman

Header = tuple[bytes, bytes]

TABLE_BYTES = 4096  # SETTINGS_HEADER_TABLE_SIZE that holds where no other was told
ENTRY_BYTES = 32  # section 4.1: what an entry costs beside name and value
NO_TABLE = b"\x20"  # section 6.3: a table size update to 0
INTEGER_BYTES_MAX = 5  # of one number; no length or index that means anything needs more
INTEGER_MAX = 1 << 31

STATIC: tuple[Header, ...] = (  # appendix A
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language",
            b"accept-ranges",
            b"accept",
            b"access-control-allow-origin",
            b"age",
            b"allow",
            b"authorization",
            b"cache-control",
            b"content-disposition",
            b"content-encoding",
            b"content-language",
            b"content-length",
            b"content-location",
            b"content-range",
            b"content-type",
            b"cookie",
            b"date",
            b"etag",
            b"expect",
            b"expires",
            b"from",
            b"host",
            b"if-match",
            b"if-modified-since",
            b"if-none-match",
            b"if-range",
            b"if-unmodified-since",
            b"last-modified",
            b"link",
            b"location",
            b"max-forwards",
            b"proxy-authenticate",
            b"proxy-authorization",
            b"range",
            b"referer",
            b"refresh",
            b"retry-after",
            b"server",
            b"set-cookie",
            b"strict-transport-security",
            b"transfer-encoding",
            b"user-agent",
            b"vary",
            b"via",
            b"www-authenticate",
        )
    ),
)
_STATIC_COUNT = len(STATIC)
_INDEXED = {header: index for index, header in reversed(list(enumerate(STATIC, 1)))}
_NAMED = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}


class HpackError(ValueError):
    """A header block that cannot be read. The table is then out of step, so the connection is lost."""


class Decoder:
    """Reads the header blocks of one direction of one connection, in their order.

    Args:
        list_bytes_max: size of the headers of one block, counted as in RFC 9113 section 6.5.2. Of a larger block the
            table takes note, and the headers are dropped.
        table_bytes_max: what we let the table of the peer grow to (SETTINGS_HEADER_TABLE_SIZE).

    Attributes:
        changes: how often the table was changed. Two equal blocks with no change between them have equal headers.
    """

    def __init__(self, *, list_bytes_max: int, table_bytes_max: int = TABLE_BYTES) -> None:
        self.changes = 0
        self._list_bytes_max = list_bytes_max
        self._table_bytes_max = table_bytes_max  # section 4.2: the peer may choose any size up to here
        self._bound = table_bytes_max  # the size in force
        self._table: list[Header] = []  # newest last
        self._size = 0

    def decode(self, block: bytes) -> list[Header] | None:
        """Return the headers of *block*, in order; None if they are larger than `list_bytes_max`.

        Raises:
            HpackError: the block is not well formed.
        """
        try:
            return self._decode(block)
        except IndexError:
            msg = "the header block ends within a field"
            raise HpackError(msg) from None

    def _decode(self, block: bytes) -> list[Header] | None:
        headers: list[Header] = []
        at, end, size = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:  # section 6.1: indexed
                index = first & 0x7F
                at += 1
                if index == 0x7F:
                    index, at = _integer(block, at, 0x7F)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:  # section 6.3: a new size of the table
                if headers or size:
                    msg = "a table size update stands behind a header"
                    raise HpackError(msg)
                at = self._resize(block, at)
                continue
            else:  # section 6.2: a literal; indexed from now on, or not
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                at += 1
                if index == mask:
                    index, at = _integer(block, at, mask)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                header = name, value
                if first & 0x40:
                    self._add(header)
            size += len(header[0]) + len(header[1]) + ENTRY_BYTES
            if size <= self._list_bytes_max:
                headers.append(header)
        return headers if size <= self._list_bytes_max else None

    def _entry(self, index: int) -> Header:
        if 0 < index <= _STATIC_COUNT:
            return STATIC[index - 1]
        newer = index - _STATIC_COUNT
        if not 0 < newer <= len(self._table):
            msg = f"no header has the index {index}"
            raise HpackError(msg)
        return self._table[-newer]

    def _resize(self, block: bytes, at: int) -> int:
        size, at = block[at] & 0x1F, at + 1
        if size == 0x1F:
            size, at = _integer(block, at, 0x1F)
        if size > self._table_bytes_max:
            msg = f"a table of {size} bytes is larger than {self._table_bytes_max}"
            raise HpackError(msg)
        self._bound = size
        self._evict(size)
        self.changes += 1
        return at

    def _add(self, header: Header) -> None:
        self.changes += 1
        size = len(header[0]) + len(header[1]) + ENTRY_BYTES
        if self._size + size > self._bound:
            self._evict(self._bound - size)
        if size <= self._bound:  # section 4.4: a larger one empties the table and is not kept
            self._table.append(header)
            self._size += size

    def _evict(self, bytes_max: int) -> None:
        gone = 0
        while self._size > bytes_max and gone < len(self._table):
            name, value = self._table[gone]
            self._size -= len(name) + len(value) + ENTRY_BYTES
            gone += 1
        del self._table[:gone]


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Return the number whose prefix was full (section 5.1), and where it ends."""
    value = prefix
    for place in range(INTEGER_BYTES_MAX):
        byte = block[at + place]
        value += (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            if value >= INTEGER_MAX:
                break
            return value, at + place + 1
    msg = "a number is too large"
    raise HpackError(msg)


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at *at* (section 5.2), and where it ends."""
    first = block[at]
    length, at = first & 0x7F, at + 1
    if length == 0x7F:
        length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        msg = "a string is longer than its header block"
        raise HpackError(msg)
    text = block[at:end]
    if first & 0x80:
        try:
            return huffman.decode(text), end
        except huffman.HuffmanError as fault:
            raise HpackError(str(fault)) from None
    return text, end


def encode(headers: list[Header]) -> bytes:
    """Return a block of *headers* that reads the same whatever was sent before: names and values that the static table
    has are indices, all others literals that no table takes note of.
    """
    block = bytearray()
    for name, value in headers:
        index = _INDEXED.get((name, value))
        if index is not None:
            block.append(0x80 | index)
            continue
        index = _NAMED.get(name, 0)
        block += _number(index, 0x0F, 0x00)
        if not index:
            block += _number(len(name), 0x7F, 0x00) + name
        block += _number(len(value), 0x7F, 0x00) + value
    return bytes(block)


def _number(value: int, prefix: int, flags: int) -> bytes:
    if value < prefix:
        return bytes((flags | value,))
    out = bytearray((flags | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)
