"""Bodies of requests: bytes of strangers to JSON objects, and typed access to their fields."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from min_llm.serve.errors import Refused

MOST_NESTED = 64  # objects and lists inside each other


async def read_object(request: Request, most_bytes: int) -> Fields:
    """The JSON object a request carries, of at most so many bytes. The rest of a larger one is thrown away as it comes:
    clients that send all of it before they read see the refusal, and the connection's limit of time still holds."""
    declared = request.headers.get("content-length", "")
    data = bytearray()
    if not (declared.isdigit() and len(declared) < 20 and int(declared) > most_bytes):
        async for chunk in request.stream():
            data += chunk
            if len(data) > most_bytes:
                break
        else:
            return Fields(parse_object(bytes(data)))
    raise Refused(f"The body is larger than {most_bytes} bytes.", status=413, code="body_too_large")


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object as RFC 8259 has it, which Python's parser is too lenient for: finite numbers, names that occur
    once, text that is Unicode."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_number,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(f"The body contains half of a surrogate pair (\\u{ord(error.object[error.start]):04x}) in a "
                      "text.") from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise Refused(
            f"The body is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}."
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        raise Refused(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refused(f"The body must be a JSON object, not {_kind(value)}.")
    _check_depth(value)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is outside the range of a 64-bit floating-point number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:40]!r} occurs twice in one object")
    return made


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refused:
    return Refused(f"The body has more than {MOST_NESTED} objects and lists inside each other.")


_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


class Fields:
    """The fields of a JSON object. null is the same as no field; a wrong type is Refused with the field's name."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self.values, self.where = values, where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def refuse(self, name: str, message: str) -> NoReturn:
        raise Refused(message, param=self.where + name)

    def _typed(self, name: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in kinds:  # exactly: true is no integer
            self.refuse(name, f"{self.where}{name} must be {what}, not {_kind(value)}.")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return self._typed(name, (bool,), "a boolean", default)

    def integer(self, name: str, default: Any = None) -> Any:
        return self._typed(name, (int,), "an integer", default)

    def number(self, name: str, default: float) -> float:
        value = self._typed(name, (int, float), "a number", default)
        if isinstance(value, int) and abs(value) > 2**63:  # float() of it may overflow
            self.refuse(name, f"{self.where}{name} is out of range.")
        return float(value)

    def text(self, name: str, default: Any = None) -> Any:
        return self._typed(name, (str,), "a string", default)

    def list(self, name: str, of: type | None = None, what: str = "") -> Any:
        """A list, of elements of one type; () where there is none."""
        values = self._typed(name, (list,), f"a list{what and ' of ' + what}", ())
        wrong = next((v for v in values if of is not None and type(v) is not of), None)
        if wrong is not None or (of is not None and None in values):
            self.refuse(name, f"{self.where}{name} must be a list of {what}, but holds {_kind(wrong)}.")
        return values

    def object(self, name: str) -> Fields | None:
        values = self._typed(name, (dict,), "an object", None)
        return None if values is None else Fields(values, f"{self.where}{name}.")

    def texts(self, name: str) -> tuple[str, ...]:
        """A string or a list of strings."""
        if isinstance(self.values.get(name), str):
            return (self.values[name],)
        return tuple(self.list(name, str, "strings"))
