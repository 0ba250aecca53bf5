# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read the pickle of a checkpoint without importing, calling or building anything that it names.

The result consists of numbers, strings, bytes, plain containers and descriptions of tensors. Every other class or
function becomes a [`StandIn`], which only keeps its name and arguments. Time and memory are bounded by the size of the
pickle: see [`MOST_OPERATIONS`] and [`MEMORY_PER_BYTE`].
"""

import gc
import struct
import sys
from collections.abc import Callable
from typing import Any

from .pickle_objects import StandIn, StoredNumbers, StoredTensor, numpy_numbers

# Python reads about two million operations in a second. A checkpoint with 5,000 tensors has about 200,000.
MOST_OPERATIONS = 3_000_000
# largest memory of the objects that are built: a multiple of the pickle's size and a constant
MEMORY_PER_BYTE, MEMORY_IN_ADDITION = 4, 2**26
_LONGEST_LINE, _LONGEST_INTEGER = 1000, 64  # bytes of a name in text form, and of an integer
_ENTRY, _CONTAINER = 100, 80  # estimated bytes of an entry in a dict or the memo, and of an empty container

# classes that become a dict
_MAPPINGS = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "addict.Dict",
    "addict.addict.Dict",
)


class PickleError(ValueError):
    """The pickle is damaged, truncated, or larger than the limits allow."""


class PickleReader:
    """Interpreter of one pickle in a buffer.

    Args:
        data: the buffer, `bytes` or a memory map.
        start, end: the part of it that the pickle may use.

    Attributes:
        position: first byte after what was read.
        names: names of all classes and functions in the pickle.
        storages: all storages of tensors by key.
    """

    def __init__(self, data: Any, start: int, end: int):
        self.data, self.position, self.end = data, start, end
        self.names: set[str] = set()
        self.storages: dict[str, StoredNumbers] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = MEMORY_PER_BYTE * (end - start) + MEMORY_IN_ADDITION

    def read(self) -> Any:
        """Return the object in the pickle.

        Raises:
            PickleError: if the pickle is damaged or exceeds the limits.
        """
        collects = gc.isenabled()
        gc.disable()  # it would walk a million new objects again and again, and find no cycle worth freeing
        try:
            for _ in range(MOST_OPERATIONS):
                if self.position >= self.end:
                    raise PickleError("it ends too early")
                code = self.data[self.position]
                self.position += 1
                if code == 0x2E:  # "."
                    return self._stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise PickleError(f"it has the unknown operation {code} at byte {self.position - 1}")
                operation(self)
        except PickleError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise PickleError(f"it is damaged near byte {self.position}") from error
        finally:
            if collects:
                gc.enable()
        raise PickleError(f"it has more than {MOST_OPERATIONS} operations, which no weights need")

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise PickleError("its objects would take many times the memory of the file")

    def _push(self, value: Any, size: int = 0) -> None:
        self._charge(size)
        self._stack.append(value)

    def _take(self, size: int) -> bytes:
        start = self.position
        if size > self.end - start:
            raise PickleError("it ends too early")
        self.position = start + size
        return self.data[start : self.position]

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _line(self, longest: int = _LONGEST_LINE) -> str:
        end = self.data.find(b"\n", self.position, min(self.position + longest, self.end))
        if end < 0:
            raise PickleError("it has a name or number without an end")
        line = self._take(end - self.position)
        self.position += 1
        return line.decode("utf-8", "replace")

    def _text(self, size: int) -> None:
        self._charge(size)
        text = self._take(size).decode("utf-8", "surrogatepass")
        self._push(text, sys.getsizeof(text))

    def _old_text(self, size: int) -> None:
        """Push a string of Python 2, which may hold bytes."""
        self._charge(size)
        content = self._take(size)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("latin1")
        self._push(text, sys.getsizeof(text))

    def _bytes(self, size: int) -> None:
        self._charge(size)
        self._push(self._take(size), _CONTAINER)

    def _integer(self, size: int) -> None:
        content = self._take(size)
        value: Any = int.from_bytes(content, "little", signed=True)
        self._push(value if size <= _LONGEST_INTEGER else StandIn("long integer"), _CONTAINER + size)

    def _long(self, size: int) -> None:
        if size <= _LONGEST_INTEGER:
            self._integer(size)
            return
        if size < 0 or size > self.end - self.position:
            raise PickleError("it ends too early")
        self.position += size
        self._push(StandIn("long integer"), _CONTAINER)

    def _text_number(self, convert: Callable[[str], Any]) -> None:
        text = self._line(100)
        if convert is int and text in ("00", "01"):  # how protocol 0 writes False and True
            self._push(text == "01")
        else:
            self._push(convert(text.removesuffix("L") if convert is int else text), _CONTAINER)

    def _quoted(self) -> None:
        self._charge(_LONGEST_LINE)
        self._push(self._line()[1:-1])

    def _remember(self, index: int) -> None:
        self._charge(_ENTRY)
        self._memo[index] = self._stack[-1]

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[len(self._stack) - count :])
        if len(items) < count:
            raise PickleError("it is damaged")
        del self._stack[len(self._stack) - count :]
        self._push(items, _CONTAINER)

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("it is damaged")
        full = f"{_CURRENT_NAMES.get(module, module)}.{name}"[:_LONGEST_LINE]
        if full not in self.names:
            self._charge(_ENTRY + 4 * len(full))
            self.names.add(full)
        self._push(StandIn(full), _CONTAINER + 4 * len(full))

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, StandIn):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("it is damaged")
        self._charge(_ENTRY * (len(items) // 2))
        for index in range(0, len(items), 2):
            target[_as_key(items[index])] = items[index + 1]

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            self._charge(16 * len(items))
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise PickleError("it is damaged")

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, StandIn):
            target.state = state  # the attributes of other objects, such as `_metadata` of a state dict, are not needed

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise PickleError("it is damaged")
        name = function.name if isinstance(function, StandIn) and function.arguments is None else None
        if name in _MAPPINGS:
            self._push({}, _CONTAINER)
            pairs = arguments[-1] if arguments else None  # Python 2 passes an OrderedDict's items
            if isinstance(pairs, list):
                for pair in pairs:
                    if not isinstance(pair, list | tuple) or len(pair) != 2:
                        raise PickleError("it is damaged")
                    self._set_items(self._stack[-1], list(pair))
            return
        built = None if name is None else self._built(name, arguments)
        if built is None:
            built = StandIn("result of a call" if name is None else name, arguments)
        self._push(built, _CONTAINER)

    def _built(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return the tensor, number, bytes or tuple that a call describes; None for any other."""
        match name.removeprefix("torch._utils."), arguments:
            case "torch._tensor._rebuild_from_type_v2", (
                StandIn() as rebuild,
                StandIn(name="torch.Tensor"),
                tuple(),
                _,
            ):
                if rebuild.name.startswith("torch._utils._rebuild_tensor"):
                    return self._built(rebuild.name, arguments[2])
            case "_rebuild_tensor" | "_rebuild_tensor_v2", (StoredNumbers() as storage, offset, shape, stride, *_):
                return StoredTensor(storage, offset, shape, stride)
            case "_rebuild_tensor_v3", (
                StoredNumbers() as storage,
                offset,
                shape,
                stride,
                _,
                _,
                StandIn() as dtype,
                *_,
            ):
                return StoredTensor(storage, offset, shape, stride, dtype.name)
            case "_rebuild_parameter" | "_rebuild_parameter_with_state", (StoredTensor() as tensor, *_):
                return tensor
            case "torch.Size", (tuple() as shape,):
                return shape
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):  # how protocol 2 writes bytes
                self._charge(len(text))
                return text.encode("latin1", "replace")
            case "numpy.core.multiarray.scalar", (StandIn() as dtype, bytes() as content) if len(content) <= 8:
                numbers = numpy_numbers(dtype, content)
                return numbers[0] if numbers is not None and len(numbers) == 1 else None
        return None

    def _persistent(self) -> None:
        identity = self._stack.pop()
        match identity:
            case ("storage", StandIn(arguments=None) as kind, str() | int() as key, _, int() as count, *view):
                start = 0
                match view:
                    case [(_, int() as start, int() as count)] | [[_, int() as start, int() as count]]:
                        pass
                if count < 0 or start < 0:
                    raise PickleError("it is damaged")
                storage = StoredNumbers(kind.name.rpartition(".")[2], str(key), count, start)
                self._push(storage, _ENTRY + _CONTAINER)
                self.storages.setdefault(storage.key, storage)
            case _:  # the first formats save the source text of modules like this
                self._push(StandIn("object outside of the pickle"), _CONTAINER)

    def _instance(self) -> None:
        """Operation `i` of protocol 0."""
        module, name = self._line(), self._line()
        arguments = tuple(self._since_mark())
        self._global(module, name)
        self._call(self._stack.pop(), arguments)

    def _object(self) -> None:
        """Operation `o` of protocol 1."""
        function, *arguments = self._since_mark()
        self._call(function, tuple(arguments))

    def _call_of_stack(self) -> None:
        arguments = self._stack.pop()
        self._call(self._stack.pop(), arguments)

    def _call_with_keywords(self) -> None:
        self._stack.pop()
        self._call_of_stack()

    def _name_of_stack(self) -> None:
        name = self._stack.pop()
        self._global(self._stack.pop(), name)

    def _pair(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set_items(self._stack[-1], [key, value])

    def _pairs(self) -> None:
        items = self._since_mark()
        self._set_items(self._stack[-1], items)

    def _new_dict(self) -> None:
        items = self._since_mark()
        self._push({}, _CONTAINER)
        self._set_items(self._stack[-1], items)

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()


def _as_key(key: Any) -> Any:
    """Return a key of a dict. Keys that are slow to hash or to compare become stand-ins.

    The hash of a tuple walks all that it contains, once for each time that it is shared, and without a limit of depth.
    """
    if key is None or type(key) in (str, bytes, bool, float, StandIn):
        return key
    if type(key) is int and key.bit_length() < 64:
        return key
    return StandIn(f"key of type {type(key).__name__}")


# old names of modules, of Python 2 and numpy 2
_CURRENT_NAMES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
}

_Operation = Callable[[PickleReader], Any]


def _operations() -> dict[int, _Operation]:
    """Return the operations of all protocols by code. Their names are in the standard library's `pickletools`."""
    by_code: dict[str, _Operation] = {
        "(": lambda reader: reader._marks.append(len(reader._stack)),
        "0": PickleReader._pop,
        "1": PickleReader._since_mark,
        "2": lambda reader: reader._push(reader._stack[-1]),
        "N": lambda reader: reader._push(None),
        "\x88": lambda reader: reader._push(True),
        "\x89": lambda reader: reader._push(False),
        "K": lambda reader: reader._push(reader._number("<B")),
        "M": lambda reader: reader._push(reader._number("<H"), 32),
        "J": lambda reader: reader._push(reader._number("<i"), 32),
        "G": lambda reader: reader._push(reader._number(">d"), 32),
        "\x8a": lambda reader: reader._long(reader._number("<B")),
        "\x8b": lambda reader: reader._long(reader._number("<i")),
        "I": lambda reader: reader._text_number(int),
        "L": lambda reader: reader._text_number(int),
        "F": lambda reader: reader._text_number(float),
        "S": PickleReader._quoted,
        "V": lambda reader: reader._push(reader._line(), 4 * _LONGEST_LINE),
        "X": lambda reader: reader._text(reader._number("<I")),
        "\x8c": lambda reader: reader._text(reader._number("<B")),
        "\x8d": lambda reader: reader._text(reader._number("<Q")),
        "T": lambda reader: reader._old_text(reader._number("<I")),
        "U": lambda reader: reader._old_text(reader._number("<B")),
        "B": lambda reader: reader._bytes(reader._number("<I")),
        "C": lambda reader: reader._bytes(reader._number("<B")),
        "\x8e": lambda reader: reader._bytes(reader._number("<Q")),
        "\x96": lambda reader: reader._bytes(reader._number("<Q")),
        "]": lambda reader: reader._push([], _CONTAINER),
        "l": lambda reader: reader._push(reader._since_mark(), _CONTAINER),
        "a": lambda reader: reader._append([reader._stack.pop()]),
        "e": lambda reader: reader._append(reader._since_mark()),
        ")": lambda reader: reader._push(()),
        "\x85": lambda reader: reader._tuple(1),
        "\x86": lambda reader: reader._tuple(2),
        "\x87": lambda reader: reader._tuple(3),
        "t": lambda reader: reader._push(tuple(reader._since_mark()), _CONTAINER),
        "}": lambda reader: reader._push({}, _CONTAINER),
        "d": PickleReader._new_dict,
        "s": PickleReader._pair,
        "u": PickleReader._pairs,
        "\x8f": lambda reader: reader._push(StandIn("builtins.set", ()), _CONTAINER),
        "\x90": PickleReader._since_mark,
        "\x91": lambda reader: reader._push(StandIn("builtins.frozenset", tuple(reader._since_mark())), _CONTAINER),
        "g": lambda reader: reader._push(reader._memo[int(reader._line(20))]),
        "h": lambda reader: reader._push(reader._memo[reader._number("<B")]),
        "j": lambda reader: reader._push(reader._memo[reader._number("<I")]),
        "p": lambda reader: reader._remember(int(reader._line(20))),
        "q": lambda reader: reader._remember(reader._number("<B")),
        "r": lambda reader: reader._remember(reader._number("<I")),
        "\x94": lambda reader: reader._remember(len(reader._memo)),
        "c": lambda reader: reader._global(reader._line(), reader._line()),
        "\x93": PickleReader._name_of_stack,
        "R": PickleReader._call_of_stack,
        "\x81": PickleReader._call_of_stack,
        "\x92": PickleReader._call_with_keywords,
        "i": PickleReader._instance,
        "o": PickleReader._object,
        "b": PickleReader._build,
        "Q": PickleReader._persistent,
        "\x80": lambda reader: reader._take(1),
        "\x95": lambda reader: reader._take(8),
    }
    return {ord(code): operation for code, operation in by_code.items()}


_OPERATIONS = _operations()
