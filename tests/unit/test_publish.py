"""`gateway.publish`: what is taken arrives byte for byte, everything else is refused in a sentence."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Problem
from gateway.message import Draft
from gateway.publish import MAX_TTL, Refusal, body_limit, check_id, parse
from gateway.settings import Policy, Settings

SETTINGS = Settings(channels={"room": Policy(keyed=True)}, max_targets=5, max_depth=64)


def attempt(raw: bytes | dict[str, Any], settings: Settings = SETTINGS) -> Draft | Problem:
    try:
        (found,) = parse(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), settings, "api:1")
    except Problem as problem:
        return problem
    return found.problem if isinstance(found, Refusal) else found


def one(raw: bytes | dict[str, Any], settings: Settings = SETTINGS) -> Draft:
    found = attempt(raw, settings)
    assert isinstance(found, Draft), found
    return found


def with_data(data: bytes) -> bytes:
    return b'{"channel":"topic:a","data":' + data + b"}"


def refused(raw: bytes | dict[str, Any], settings: Settings = SETTINGS) -> Problem:
    found = attempt(raw, settings)
    assert isinstance(found, Problem), found
    return found


# What a strict parser says: Python's own, with what it is too lenient about added.


def is_strict(raw: bytes) -> bool:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        value = json.loads(raw.decode(), parse_constant=refuse, parse_int=str, parse_float=str, object_pairs_hook=list)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate escape does not encode
    except ValueError:
        return False
    return True


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON texts, most of them valid, many of them damaged in one place."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    value = draw(st.recursive(scalars, lambda inner: st.lists(inner, max_size=4)
                              | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=8))  # fmt: skip
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    raw = text.encode(errors="surrogatepass")
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(raw)))
        drop = draw(st.integers(0, 3))
        raw = raw[:cut] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3)) + raw[cut + drop :]
    return raw


FRAGMENTS = [
    b"", b"NaN", b"-Infinity", b"Infinity", b"01", b"1.", b".5", b"+1", b"-", b"1e", b"1e400", b"-0", b"0x1", b"1_0",
    b"'a'", b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\ud83d\\ud83d"', b'"\\ud800\\u0041"', b'"\\ud800\\n"',
    b"\\ud83d", b'{"\\ud800":1}', b'{"\\udc00\\ud800":1}', b'"\\x"', b'"\\u12"', b'"\\u00G0"', b'"\\"', b"\\", b'"\n"',
    b'"\x00"', b'"\x1f"', b'"\x7f"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xe2\x80\xa8"', b"\xef\xbb\xbf", b"[1,]", b'{"a":1,}', b"[,]", b'{"a"}', b'{"a" 1}', b"{1:1}", b"{a:1}",
    b"[1 2]", b"tru", b"truee", b"nul", b"//", b"/**/", b"\x0b", b"\x0c", b"\xa0", b"\xc2\xa0", b" ", b"\t", b"\r\n",
    b",", b"]", b"}", b"[", b"{", b'"', b":", b"}{", b"\x00",
]  # fmt: skip


def agrees(data: bytes) -> None:
    strict = is_strict(with_data(data))
    found = attempt(with_data(data))
    if isinstance(found, Problem):
        # A damaged text may close the object early and go on with fields of its own; those are refused by name.
        assert not strict or found.code == "bad_request", (data, found.detail)
    else:
        assert strict, data
        assert not is_strict(data) or found.data == data.strip(b" \t\r\n").translate(bytes.maketrans(b"\r\n", b"  "))


@given(documents())
def test_takes_exactly_what_strict_json_is(data: bytes) -> None:
    agrees(data)


@given(st.lists(st.sampled_from([*FRAGMENTS, b"1", b'"a"', b"null"]), max_size=6).map(b"".join))
def test_takes_exactly_what_strict_json_is_of_fragments(data: bytes) -> None:
    agrees(data)


@pytest.mark.parametrize("fragment", FRAGMENTS[1:])
@pytest.mark.parametrize("around", [b"%b", b"[%b]", b'{"k":%b}', b'{"k":{"k":[%b]}}', b'"%b"'])
def test_takes_exactly_what_strict_json_is_wherever_it_stands(fragment: bytes, around: bytes) -> None:
    agrees(around % fragment)


@pytest.mark.parametrize("data", [
    "\"\U0001f680 \u2028 \u2029 \u00e9\"".encode(), b'"\\ud83d\\ude80"', b'{"\\ud83d\\ude80":1}',
    b"9223372036854775807", b"-9223372036854775808", b"18446744073709551616", b"12345678901234567890123456789",
    b"1e400", b"-0", b"1.10", b"1E+2", b'{"a":1,"a":2}', b'"\\/\\u0041"', b"[ 1 ,\t2 ]", b'"\x7f"', b'"\\u0000"',
    b'""', b"null", b"false",
])  # fmt: skip
def test_data_arrives_byte_for_byte(data: bytes) -> None:
    assert one(with_data(data)).data == data


def test_line_breaks_between_tokens_become_spaces() -> None:
    assert one(with_data(b'{\r\n "a": [1,\n2],"b":"\\n"}')).data == b'{   "a": [1, 2],"b":"\\n"}'


@pytest.mark.parametrize("raw", [
    with_data(b"1") + b"x", with_data(b"1") + b"{}", b"\xef\xbb\xbf" + with_data(b"1"),
    with_data(b"1").decode().encode("utf-16"), b"", b" ", b"{", with_data(b"1")[:-1], with_data(b'"\xff"'),
    with_data(b"NaN"), with_data(b'"\\ud800"'), with_data(b'{"\\udc00":1}'), b'{"channel":"topic:\\ud800","data":1}',
    b'{"channel":"topic:\xff","data":1}', b'{"channel":"topic:a","event":"\\udfff","data":1}',
])  # fmt: skip
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    problem = refused(raw)
    assert (problem.code, problem.kind.status) == ("bad_json", 400)


def test_depth_is_counted_outside_strings_only() -> None:
    deepest = b"[" * 64 + b"]" * 64
    assert one(with_data(deepest)).data == deepest
    assert refused(with_data(b"[" + deepest + b"]")).code == "too_deep"
    assert refused(with_data(b'{"a":[' * 33 + b"1" + b"]}" * 33)).code == "too_deep"
    text = b'["' + b"[" * 1000 + b'\\"{\\\\","' + b"{" * 1000 + b'"]'
    assert one(with_data(text)).data == text
    wide = b"[" + b",".join([b"[{}]"] * 1000) + b"]"
    assert one(with_data(wide)).data == wide


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "[", '"{']), inner, max_size=3)


@given(st.recursive(st.sampled_from([1, "[", '{"', '\\"]', ""]), nested, max_leaves=20))
def test_depth_is_that_of_the_value(value: Any) -> None:
    def depth(value: Any) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    deep = depth(value)
    raw = with_data(json.dumps(value).encode())
    if deep:
        assert one(raw, Settings(max_depth=deep))
    if deep > 1:
        assert refused(raw, Settings(max_depth=deep - 1)).code == "too_deep"


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"a":' * 100_000, with_data(b"[" * 100_000 + b"]" * 100_000),
                                  with_data(b'{"":' * 100_000 + b"1" + b"}" * 100_000),
                                  b'{"channel":' + b"[" * 100_000, b'{"bogus":' + b"[" * 100_000])  # fmt: skip
def test_a_bomb_of_brackets_is_a_fast_refusal(bomb: bytes) -> None:
    began = time.process_time()
    problem = refused(bomb, Settings(max_message=1 << 20))
    assert problem.kind.status == 400
    assert time.process_time() - began < 0.1


def test_the_deepest_depth_that_can_be_set_works() -> None:
    data = b"[" * 500 + b"]" * 500
    assert one(with_data(data), Settings(max_depth=500)).data == data


def test_data_has_a_limit_in_bytes() -> None:
    settings = Settings(max_message=10)
    assert one(with_data(b'"12345678"'), settings).data == b'"12345678"'
    problem = refused(with_data(b'"123456789"'), settings)
    assert (problem.code, problem.facts) == ("too_large", {"field": "data", "limit": 10})


def test_the_largest_publish_fits_the_limit_of_a_body() -> None:
    name = "é" * 200
    users = [f"{i:03}" + name[3:] for i in range(SETTINGS.max_targets)]
    raw = json.dumps({"users": users, "data": "x" * (SETTINGS.max_message - 2)}, ensure_ascii=False).encode()
    assert len(raw) <= body_limit(SETTINGS)
    assert len(parse(raw, SETTINGS, "api:1")) == SETTINGS.max_targets


def test_a_user_is_a_channel_and_one_id_serves_all_targets() -> None:
    draft = one({"user": "42", "data": {"order": 7}})
    assert (draft.channel, draft.event, draft.data) == ("user:42", "message", b'{"order": 7}')
    assert (len(draft.id), draft.idempotent, draft.principal) == (26, False, "api:1")
    many = parse(b'{"users":["1","2","1"],"data":1,"id":"a"}', SETTINGS, "api:1")
    told = [(draft.channel, draft.id, draft.idempotent) for draft in many if isinstance(draft, Draft)]
    assert told == [("user:1", "a", True), ("user:2", "a", True)]


def test_what_is_wrong_with_one_target_leaves_the_others_alone() -> None:
    found = parse(b'{"channels":["room:1","topic:1","jobs:1","nonsense","room:2"],"data":1,"key":"k"}', SETTINGS, "")
    codes = [entry.problem.code if isinstance(entry, Refusal) else None for entry in found]
    assert codes == [None, "key_not_allowed", "reserved_channel", "bad_channel", None]
    assert [entry.channel for entry in found] == ["room:1", "topic:1", "jobs:1", "nonsense", "room:2"]


def test_a_keyed_publish() -> None:
    draft = one({"channel": "room:1", "key": "k é", "version": [0, 2**53 - 1], "ttl": "30s", "data": 1})
    assert (draft.key, draft.version, draft.ttl, draft.deleted) == ("k é", (0, 2**53 - 1), 30.0, False)
    assert one({"channel": "room:1", "key": "k", "deleted": True}).data == b"null"
    assert one({"channel": "room:1", "key": "k", "ttl": 1.5, "data": 1}).ttl == 1.5
    assert one({"channel": "room:1", "key": "k", "ttl": MAX_TTL, "data": 1}).ttl == MAX_TTL


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    body = {"channel": "room:1", "channels": None, "event": None, "key": None, "version": None, "ttl": None,
            "deleted": None, "id": None, "data": None}  # fmt: skip
    draft = one(body)
    assert (draft.event, draft.key, draft.data, draft.idempotent) == ("message", None, b"null", False)


@pytest.mark.parametrize(("body", "code", "says"), [
    ({"channel": "topic:a"}, "bad_request", "data is missing"),
    ({"channel": "room:a", "key": "k", "deleted": False}, "bad_request", "data is missing"),
    ({"data": 1}, "bad_request", "there is none"),
    ({"channel": "topic:a", "user": "1", "data": 1}, "bad_request", "channel, user"),
    ({"channels": [], "data": 1}, "bad_request", "channels is empty"),
    ({"users": [str(i) for i in range(6)], "data": 1}, "too_many_channels", "6 entries, at most 5"),
    ({"channel": "topic:a", "data": 1, "tll": 3}, "bad_request", "unknown field `tll`"),
    ({"channel": "topic:a", "data": 1, "x" * 10000: 3}, "bad_request", "unknown field"),
    ({"channel": 7, "data": 1}, "bad_request", "$.channel"),
    ([], "bad_request", "Expected `object`, got `array`"),
    ({"channel": "nonsense", "data": 1}, "bad_channel", "namespace"),
    ({"channel": "topic:", "data": 1}, "bad_channel", "1 to 200"),
    ({"channel": "topic:" + "x" * 201, "data": 1}, "bad_channel", "1 to 200"),
    ({"channel": "topic:a b", "data": 1}, "bad_channel", "space"),
    ({"user": "a,b", "data": 1}, "bad_channel", "comma"),
    ({"user": "*", "data": 1}, "bad_channel", "'*'"),
    ({"user": "a\u2028b", "data": 1}, "bad_channel", "printable"),
    ({"channel": "jobs:1", "data": 1}, "reserved_channel", "'jobs:'"),
    ({"channel": "presence:room:1", "data": 1}, "reserved_channel", "'presence:'"),
    ({"channel": "ringcast:nodes", "data": 1}, "reserved_channel", "'ringcast:'"),
    ({"channel": "topic:a", "event": "a\nb", "data": 1}, "bad_event", "control"),
    ({"channel": "topic:a", "event": "a\r", "data": 1}, "bad_event", "control"),
    ({"channel": "topic:a", "event": "\x00", "data": 1}, "bad_event", "control"),
    ({"channel": "topic:a", "event": "", "data": 1}, "bad_event", "1 to 200"),
    ({"channel": "topic:a", "event": "error", "data": 1}, "bad_event", "reserved"),
    ({"channel": "topic:a", "event": "ringcast.ping", "data": 1}, "bad_event", "reserved"),
    ({"channel": "topic:a", "key": "k", "data": 1}, "key_not_allowed", "`[channels.topic] keyed = true`"),
    ({"channel": "room:a", "key": "", "data": 1}, "bad_request", "key must have 1 to 200"),
    ({"channel": "room:a", "key": "k" * 201, "data": 1}, "bad_request", "key must have 1 to 200"),
    ({"channel": "room:a", "key": "a\tb", "data": 1}, "bad_request", "key must not hold control"),
    ({"channel": "room:a", "version": [1], "data": 1}, "bad_request", "version belongs to a key"),
    ({"channel": "room:a", "deleted": True}, "bad_request", "deleted belongs to a key"),
    ({"channel": "room:a", "ttl": 3, "data": 1}, "bad_request", "ttl belongs to a key"),
    ({"channel": "room:a", "key": "k", "version": [], "data": 1}, "bad_request", "1 to 5 integers"),
    ({"channel": "room:a", "key": "k", "version": [1] * 6, "data": 1}, "bad_request", "1 to 5 integers"),
    ({"channel": "room:a", "key": "k", "version": [-1], "data": 1}, "bad_request", "1 to 5 integers"),
    ({"channel": "room:a", "key": "k", "version": [2**53], "data": 1}, "bad_request", "1 to 5 integers"),
    ({"channel": "room:a", "key": "k", "version": [True], "data": 1}, "bad_request", "$.version"),
    ({"channel": "room:a", "key": "k", "version": 3, "data": 1}, "bad_request", "$.version"),
    ({"channel": "room:a", "key": "k", "ttl": 0, "data": 1}, "bad_request", "more than 0 seconds"),
    ({"channel": "room:a", "key": "k", "ttl": -1, "data": 1}, "bad_request", "more than 0 seconds"),
    ({"channel": "room:a", "key": "k", "ttl": "9" * 400, "data": 1}, "bad_request", "at most 3650d"),
    ({"channel": "room:a", "key": "k", "ttl": "soon", "data": 1}, "bad_request", "not a duration"),
    ({"channel": "topic:a", "data": 1, "id": ""}, "bad_request", "id must have 1 to 200"),
    ({"channel": "topic:a", "data": 1, "id": "i" * 201}, "bad_request", "id must have 1 to 200"),
    ({"channel": "topic:a", "data": 1, "id": "a\nb"}, "bad_request", "id must not hold control"),
])  # fmt: skip
def test_refusals_say_what_is_wrong(body: dict[str, Any], code: str, says: str) -> None:
    problem = refused(body)
    assert problem.code == code
    assert says in problem.detail
    assert len(problem.detail) < 500


def test_the_header_gives_the_id() -> None:
    raw = with_data(b"1")
    (draft,) = parse(raw, SETTINGS, "", check_id(["abc"]))
    assert isinstance(draft, Draft)
    assert (draft.id, draft.idempotent) == ("abc", True)
    same = raw[:-1] + b',"id":"abc"}'
    assert len(parse(same, SETTINGS, "", "abc")) == 1
    with pytest.raises(Problem, match="differ"):
        parse(same, SETTINGS, "", "other")
    assert check_id([]) is None
    for headers in (["a", "b"], [""], ["a\tb"], ["\xe9"], ["i" * 201]):
        with pytest.raises(Problem) as caught:
            check_id(headers)
        assert caught.value.code == "bad_request"
