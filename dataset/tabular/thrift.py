"""Structs in the compact protocol of Apache Thrift, of which only what is asked for is kept.

Format: https://github.com/apache/thrift, `doc/specs/thrift-compact-protocol.md`. Damaged bytes cost
no more time and memory than they are long.
"""

from typing import Any

# Number of a field -> what it must hold; all other fields are skipped.
Layout = dict[int, Any]  # int, bytes, a layout of a struct, or a list with that of its structs
DEPTH = 32  # of structs in structs
BYTE, INTEGERS, BINARY, LISTS, MAP, STRUCT = 3, (4, 5, 6), 8, (9, 10), 11, 12  # types of fields
FIXED = {1: 0, 2: 0, BYTE: 1, 7: 8, 13: 16}  # bytes of true, false, a byte, a float, a UUID


class Thrift:
    """Values in the compact protocol, read one after the other; IndexError at the end."""

    def __init__(self, content: bytes):
        self.content, self.position = content, 0

    def struct(self, layout: Layout, depth: int = 0) -> dict[int, Any]:
        """Read a struct; return number of a field -> value, of those in the layout."""
        found: dict[int, Any] = {}
        content, number = self.content, 0
        while kind := (head := content[self.position]) & 15:
            self.position += 1
            number = number + (head >> 4) if head > 15 else self.integer()
            wanted = layout.get(number)
            if wanted is None:
                self.skip(kind, depth + 1)
            elif wanted is int and kind in INTEGERS:
                found[number] = self.integer()
            elif wanted is bytes and kind == BINARY:
                found[number] = self.binary()
            elif isinstance(wanted, dict) and kind == STRUCT:
                found[number] = self.struct(wanted, depth + 1)
            elif isinstance(wanted, list) and kind in LISTS:
                count, item = self.list_head()
                if item != STRUCT:
                    raise ValueError(f"a list of type {item} where structs are needed")
                found[number] = [self.struct(wanted[0], depth + 1) for _ in range(count)]
            else:  # a field of another type is skipped, as Thrift's own readers do
                self.skip(kind, depth + 1)
        self.position += 1
        return found

    def unsigned(self) -> int:
        """Read a number of seven bits per byte."""
        value = shift = 0
        while True:
            byte = self.content[self.position]
            self.position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def integer(self) -> int:
        """Read a number whose lowest bit is the sign."""
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        length = self.unsigned()
        start, self.position = self.position, self.position + length
        if self.position > len(self.content):
            raise IndexError("it ends within a text")
        return self.content[start : self.position]

    def list_head(self) -> tuple[int, int]:
        """Read how many items there are, and their type."""
        head = self.content[self.position]
        self.position += 1
        return (head >> 4 if head < 0xF0 else self.unsigned()), head & 15

    def skip(self, kind: int, depth: int) -> None:
        """Pass over a value."""
        if kind in INTEGERS:
            self.skip_integer()
        elif kind == BINARY:
            length = self.unsigned()
            self.position += length
        elif kind == STRUCT:
            self.skip_struct(depth)
        elif kind in LISTS:
            count, item = self.list_head()
            for _ in range(count):
                self.skip_item(item, depth)
        elif kind == MAP:
            if count := self.unsigned():
                kinds = self.content[self.position]
                self.position += 1
                for _ in range(count):
                    self.skip_item(kinds >> 4, depth)
                    self.skip_item(kinds & 15, depth)
        elif kind in FIXED:
            self.position += FIXED[kind]
        else:
            raise ValueError(f"a value of the type {kind}, which does not exist")

    def skip_integer(self) -> None:
        content, position = self.content, self.position
        while content[position] > 127:
            position += 1
        self.position = position + 1

    def skip_struct(self, depth: int) -> None:
        """Pass over a struct."""
        if depth > DEPTH:
            raise ValueError(f"more than {DEPTH} structs in each other")
        content = self.content
        while kind := (head := content[self.position]) & 15:
            self.position += 1
            if head < 16:
                self.skip_integer()
            if kind in INTEGERS:
                self.skip_integer()
            else:
                self.skip(kind, depth + 1)
        self.position += 1

    def skip_item(self, kind: int, depth: int) -> None:
        """Pass over an item of a list or a map, where true and false take a byte."""
        if depth > DEPTH:
            raise ValueError(f"more than {DEPTH} lists in each other")
        if self.position >= len(self.content):  # so many items as a damaged list may say
            raise IndexError("it ends within a list")
        if kind in INTEGERS:
            self.skip_integer()
        else:
            self.skip(BYTE if kind in (1, 2) else kind, depth + 1)
