from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from fedhash.errors import MessageError
from fedhash.rounds.messages import Message, canonical_json

LIMIT = 1 << 22
DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES += ["float32", "float64"]

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
messages = st.builds(
    Message,
    kind=names,
    header=st.dictionaries(st.text(), json_values, max_size=4),
    arrays=st.dictionaries(names, arrays, max_size=4),
)


def same(one: Message, other: Message) -> bool:
    return (
        one.kind == other.kind
        and canonical_json(one.header) == canonical_json(other.header)
        and one.arrays.keys() == other.arrays.keys()
        and all(
            array.dtype == other.arrays[name].dtype
            and array.shape == other.arrays[name].shape
            and array.tobytes() == other.arrays[name].tobytes()
            for name, array in one.arrays.items()
        )
    )


def container(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_envelope(text: str) -> bytes:
    return save({}, {"fedhash": text})


def with_tensor(data: bytes = b"\0\0\0\0", **changes: object) -> bytes:
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes
    envelope = '{"header":{},"kind":"train"}'
    return container({"__metadata__": {"fedhash": envelope}, "model": tensor}, data)


@given(messages)
def test_a_message_survives_its_byte_form(message: Message) -> None:
    data = message.encode()
    assert same(Message.decode(data, max_bytes=len(data)), message)


def test_the_byte_form_holds_values_and_not_memory() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    message = Message("train", {}, {"columns": grid[:, ::2], "swapped": grid.astype(">f4")})
    decoded = Message.decode(message.encode(), max_bytes=LIMIT)
    np.testing.assert_array_equal(decoded.arrays["columns"], grid[:, ::2])
    np.testing.assert_array_equal(decoded.arrays["swapped"], grid)


def test_a_decoded_message_owns_its_arrays() -> None:
    data = Message("train", {}, {"model": np.zeros(3, np.float32)}).encode()
    first = Message.decode(data, max_bytes=LIMIT)
    first.arrays["model"] += 1
    assert Message.decode(data, max_bytes=LIMIT).arrays["model"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("Train", {}, {}), "the kind 'Train' must match"),
        (Message("", {}, {}), "the kind '' must match"),
        (Message("train", {}, {"__metadata__": np.zeros(1)}), "array name '__metadata__'"),
        (Message("train", {}, {"x": np.zeros(1, np.float16)}), "'x' is float16"),
        (Message("train", {}, {"x": np.zeros(1, bool)}), "'x' is bool"),
        (Message("train", {}, {"x": np.array([None])}), "'x' is object"),
        (Message("train", {}, {"x": np.zeros((1,) * 9)}), "9 dimensions"),
        (Message("train", {"loss": math.nan}, {}), "plain finite JSON"),
        (Message("train", {"name": "\ud800"}, {}), "plain finite JSON"),
        (Message("train", {"text": "x" * (1 << 20)}, {}), "send large values as arrays"),
    ],
)
def test_what_no_peer_would_accept_is_not_sent(message: Message, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        message.encode()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"pair": (1, 2)}, "cannot hold a tuple"),
        ({1: 2}, "must be strings"),
        ({"set": {1}}, "cannot hold a set"),
    ],
)
def test_headers_hold_json_types_only(header: dict, problem: str) -> None:
    # built inside a list: the run-time type check of the constructor would object first
    message = Message("train", {}, {})
    message.header.update(header)
    with pytest.raises(MessageError, match=problem):
        message.encode()


def test_a_deep_header_is_neither_sent_nor_read() -> None:
    deep: list = []
    for _ in range(20):
        deep = [deep]
    with pytest.raises(MessageError, match="deeper than 16"):
        Message("train", {"deep": deep}, {}).encode()
    envelope = canonical_json({"header": {"deep": deep}, "kind": "train"})
    with pytest.raises(MessageError, match="deeper than 16"):
        Message.decode(with_envelope(envelope), max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a whole safetensors container"),
        (b"\x80\x04\x95", "not a whole safetensors container"),  # a pickle's first bytes
        ((1 << 60).to_bytes(8, "little") + b"{}", "not a whole safetensors container"),
        (container(b" " * (1 << 21)), "at most 1048576 are allowed"),
        (container(b"\xff\xfe"), "not UTF-8"),
        (container(b"[" * 100_000), "not valid JSON"),
        (container(b'{"n":' + b"9" * 5000 + b"}"), "not valid JSON"),
        (container(b"{"), "not valid JSON"),
        (container([]), "exactly the entry 'fedhash'"),
        (container({}), "exactly the entry 'fedhash'"),
        (container({"__metadata__": {"format": "pt"}}), "exactly the entry 'fedhash'"),
        (container({"__metadata__": {"fedhash": "{}", "more": ""}}), "exactly the entry"),
        (container({"__metadata__": {"fedhash": 3}}), "with 'header' and 'kind'"),
        (container(b'{"__metadata__":{},"__metadata__":{}}'), "holds one name twice"),
        (with_envelope("[" * 100_000), "not valid JSON"),
        (with_envelope("[]"), "with 'header' and 'kind'"),
        (with_envelope('{"header":{}}'), "with 'header' and 'kind'"),
        (with_envelope('{"extra":1,"header":{},"kind":"train"}'), "with 'header' and 'kind'"),
        (with_envelope('{"header":[],"kind":"train"}'), "must be a JSON object, found list"),
        (with_envelope('{"header":{},"kind":3}'), "the kind '3' must match"),
        (with_envelope('{"header":{},"kind":"../x"}'), "must match"),
        (with_envelope('{"header":{"a":1,"a":2},"kind":"train"}'), "holds one name twice"),
        (with_envelope('{"header":{"a":NaN},"kind":"train"}'), "plain finite JSON"),
        (with_envelope('{"header":{"a":1e999},"kind":"train"}'), "plain finite JSON"),
        (with_envelope('{"header":{"a":"\\ud800"},"kind":"train"}'), "plain finite JSON"),
        (with_envelope('{"header":{"a":1E5},"kind":"train"}'), "not canonical JSON"),
        (with_envelope('{"kind":"train","header":{}}'), "not canonical JSON"),
        (with_envelope('{"header": {},"kind":"train"}'), "not canonical JSON"),
        (with_tensor(dtype="BF16", data_offsets=[0, 2], data=b"\0\0"), "cannot be read"),
        (with_tensor(dtype="F16", data_offsets=[0, 2], data=b"\0\0"), "'model' is float16"),
        (with_tensor(dtype="BOOL", data_offsets=[0, 1], data=b"\2"), "'model' is bool"),
        (with_tensor(dtype="O"), "cannot be read"),
        (with_tensor(shape=[2]), "cannot be read"),
        (with_tensor(shape=[-1]), "cannot be read"),
        (with_tensor(shape=[1 << 62, 1 << 62]), "cannot be read"),
        (with_tensor(shape=[0, 1 << 63], data_offsets=[0, 0], data=b""), "cannot be read"),
        (with_tensor(shape=[1] * 9), "9 dimensions"),
        (with_tensor(data_offsets=[4, 0]), "cannot be read"),
        (with_tensor(data_offsets=[4, 8], data=b"\0" * 8), "cannot be read"),
        (with_tensor(data=b"\0" * 5), "cannot be read"),
    ],
)
def test_hostile_bytes_are_a_message_error(data: bytes, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        Message.decode(data, max_bytes=LIMIT)


def test_a_message_above_the_limit_is_not_even_parsed() -> None:
    data = Message("train", {}, {"model": np.zeros(100)}).encode()
    with pytest.raises(MessageError, match=f"{len(data)} bytes, the limit is {len(data) - 1}"):
        Message.decode(data, max_bytes=len(data) - 1)


def decoded_or_refused(data: bytes) -> None:
    """Either the one error, or a message that can be sent on as it was read."""
    try:
        message = Message.decode(data, max_bytes=LIMIT)
    except MessageError:
        return
    assert same(Message.decode(message.encode(), max_bytes=LIMIT), message)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    decoded_or_refused(noise)
    decoded_or_refused(container(noise))


@given(messages, st.data())
def test_altered_messages_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    altered = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(altered)))
    decoded_or_refused(bytes(altered))
    decoded_or_refused(bytes(altered[:cut]))


tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "BF16", "F8_E4M3", "X", 3]),
        "shape": st.lists(st.integers(-1, 1 << 64), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 1 << 64), max_size=3) | json_values,
    }
)


@given(st.dictionaries(st.text(), tensors | json_values, max_size=3), json_values, st.binary())
def test_any_json_container_is_read_or_refused(
    entries: dict, envelope: object, content: bytes
) -> None:
    metadata = {"fedhash": json.dumps(envelope)}
    decoded_or_refused(container(entries | {"__metadata__": metadata}, content))
    decoded_or_refused(container(entries, content))
