"""Bodies that no honest client writes: refused by name, or read as what JSON says they are."""

import codecs
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable

import httpx
import pytest
from hostile import JSON, POSTS, QUOTE, Logs, assert_charged_for_200s, assert_harmless, body_of
from scripted import World, error_of

MakeWorld = Callable[..., Awaitable[World]]
GOOD = b'{"prompt": "a red circle"'

# what, the rest of a good body, status, param
VALUES: list[tuple[str, bytes, int, str | None]] = [
    ("infinity by overflow", b', "guidance_scale": 1e400}', 400, "guidance_scale"),
    ("minus infinity by overflow", b', "guidance_scale": -1e400}', 400, "guidance_scale"),
    ("nought by underflow", b', "guidance_scale": 1e-400}', 200, None),
    ("minus nought", b', "guidance_scale": -0.0}', 200, None),
    ("a huge integer as a float", b', "guidance_scale": 1' + b"0" * 400 + b"}", 400,
     "guidance_scale"),
    ("overflow in an unknown field", b', "extra": 1e400}', 200, None),
    ("a huge integer in an unknown field", b', "extra": 1' + b"0" * 400 + b"}", 200, None),
    ("n is true", b', "n": true}', 400, "n"),
    ("n is false", b', "n": false}', 400, "n"),
    ("n is a float", b', "n": 1.0}', 400, "n"),
    ("n is a float in another spelling", b', "n": 1E0}', 400, "n"),
    ("n is a string", b', "n": "1"}', 400, "n"),
    ("n overflows", b', "n": 1e400}', 400, "n"),
    ("n is 10**400", b', "n": 1' + b"0" * 400 + b"}", 400, "n"),
    ("n is minus nought", b', "n": -0}', 400, "n"),
    ("n is a list", b', "n": [1]}', 400, "n"),
    ("n is an object", b', "n": {"$gt": 0}}', 400, "n"),
    ("a seed of 2**63", b', "seed": 9223372036854775808}', 400, "seed"),
    ("a seed of 2**64", b', "seed": 18446744073709551616}', 400, "seed"),
    ("a seed of -1", b', "seed": -1}', 400, "seed"),
    ("a seed of -0", b', "seed": -0}', 200, None),
    ("a seed of -0.0", b', "seed": -0.0}', 400, "seed"),
    ("a seed of 1.0", b', "seed": 1.0}', 400, "seed"),
    ("a seed of 1e3", b', "seed": 1e3}', 400, "seed"),
    ("a seed of 10**400", b', "seed": 1' + b"0" * 400 + b"}", 400, "seed"),
    ("a capital X", b', "size": "1024X1024"}', 400, "size"),
    ("full-width digits", ', "size": "１０２４x1024"}'.encode(), 400, "size"),
    ("another x", ', "size": "1024×1024"}'.encode(), 400, "size"),
    ("a Cyrillic x", ', "size": "1024х1024"}'.encode(), 400, "size"),
    ("a size in scientific notation", b', "size": "1e3x1024"}', 400, "size"),
    ("a hexadecimal size", b', "size": "0x100x256"}', 400, "size"),
    ("a size with a NUL", b', "size": "128x128\\u0000"}', 400, "size"),
    ("an overflowing size", b', "size": "4294967424x128"}', 400, "size"),
    ("a size with a nought in front", b', "size": "0128x0128"}', 400, "size"),
    ("a raw control character", b', "user": "a\nb"}', 400, None),
    ("an escaped line break", b', "user": "a\\r\\nINFO forged"}', 200, None),
    ("a NUL in a user", b', "user": "a\\u0000b"}', 200, None),
    ("a model with a NUL", b', "model": "flux-mini\\u0000"}', 404, "model"),
    ("a model with a line break", b', "model": "flux-mini\\n"}', 404, "model"),
    ("a model of another case", b', "model": "FLUX-MINI"}', 404, "model"),
    ("a model that is a path", b', "model": "../../etc/passwd"}', 404, "model"),
    ("a lone surrogate, escaped", b', "user": "\\ud800"}', 400, "user"),
    ("surrogates in the wrong order", b', "user": "\\udc00\\ud800"}', 400, "user"),
    ("a pair of surrogates", b', "user": "\\ud83c\\udfa8"}', 200, None),
    ("a lone surrogate, raw", b', "user": "\xed\xa0\x80"}', 400, None),
    ("an overlong slash", b', "user": "\xc0\xaf"}', 400, None),
    ("a code point past the last", b', "user": "\xf4\x90\x80\x80"}', 400, None),
    ("a prototype", b', "__proto__": {"n": 10}, "constructor": {"n": 10}}', 200, None),
    ("fields of the server's own", b', "units": 0, "account_id": "x", "job_id": "x"}', 200, None),
    ("an empty key", b', "": 1}', 200, None),
    ("a comment", b', /* c */ "n": 1}', 400, None),
    ("a single quote", b", 'n': 1}", 400, None),
    ("a plus sign", b', "seed": +1}', 400, None),
    ("a leading nought", b', "seed": 01}', 400, None),
    ("text after the end", b"} x", 400, None),
    ("depth that the parser bears", b', "extra": ' + b"[" * 200 + b"]" * 200 + b"}", 200, None),
    ("depth above it", b', "extra": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
    ("objects that deep", b', "extra": ' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001, 400, None),
    ("depth without an end", b', "extra": ' + b"[" * 200_000, 400, None),
    ("as many keys as fit", b"".join(b', "k%d": 0' % i for i in range(15_000)) + b"}", 200, None),
]  # fmt: skip


async def test_odd_values_are_refused_by_name_or_read_as_json_says(
    world: World, subtests: pytest.Subtests
) -> None:
    http, drawn = world.http, []
    for path in POSTS:
        for what, rest, status, param in VALUES:
            with subtests.test(what, path=path):
                reply = await http.post(path, content=GOOD + rest, headers=JSON)
                assert_harmless(reply, world)
                assert reply.status_code == status, reply.text
                if status != 200:
                    assert error_of(reply)["param"] == param
                if path != QUOTE:
                    drawn.append(reply)
    await assert_charged_for_200s(world, drawn)


# the body, how the message shows the key
REPEATED = [
    (b'{"prompt": "x", "n": 1, "n": 10}', "'n'"),
    (b'{"prompt": "x", "n": 1, "\\u006e": 10}', "'n'"),
    (b'{"prompt": "x", "prompt": "x"}', "'prompt'"),
    (b'{"prompt": "x", "a": {"b": 1, "c": 2, "b": 3}}', "'b'"),
    (b'{"prompt": "x", "a": [{"\\ud800": 1, "\\ud800": 1}]}', "'\\ud800'"),
    (b'{"prompt": "x", "a\\nb": 1, "a\\nb": 1}', "'a\\nb'"),
    (b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 1}', "'" + "k" * 64 + "'"),
    (b'{"prompt": null, "prompt": "x"}', "'prompt'"),
]


async def test_a_key_that_occurs_twice_is_refused_and_named(
    world: World, subtests: pytest.Subtests
) -> None:
    for body, shown in REPEATED:
        with subtests.test(shown):
            reply = await world.http.post(QUOTE, content=body, headers=JSON)
            assert_harmless(reply, world)
            assert reply.status_code == 400
            assert error_of(reply)["message"] == f"The request body names the key {shown} twice."


TEXT = '{"prompt": "a red circle"}'


@pytest.mark.parametrize(
    "body",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.encode("cp037"),
        TEXT.encode("utf-7").replace(b"circle", b"\xffcircle"),
        b"\x00" * 1000,
        b"\x1f\x8b" + b"x" * 100,
        b"prompt=x&n=1",
        b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--\r\n',
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    ],
)
async def test_only_utf8_without_a_byte_order_mark_is_json(world: World, body: bytes) -> None:
    reply = await world.http.post(QUOTE, content=body, headers=JSON)
    assert_harmless(reply, world)
    assert (reply.status_code, error_of(reply)["param"]) == (400, None)


ENCODED = {
    "gzip": gzip.compress(body_of()),
    "x-gzip": gzip.compress(body_of()),
    "deflate": zlib.compress(body_of()),
    "br": b"\x0b\x02\x80{}\x03",
    "zstd": b"(\xb5/\xfd",
    "GZIP": gzip.compress(b" " * 50_000_000 + body_of(), 9),  # 50 kB that would be 50 MB
    "gzip, identity": gzip.compress(body_of()),
    "chunked": body_of(),
}


@pytest.mark.parametrize("encoding", list(ENCODED))
@pytest.mark.parametrize("path", POSTS)
async def test_a_compressed_body_is_a_415_and_is_never_unpacked(
    world: World, path: str, encoding: str
) -> None:
    headers = {**JSON, "content-encoding": encoding}
    reply = await world.http.post(path, content=ENCODED[encoding], headers=headers)
    assert_harmless(reply, world)
    assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_media_type")
    assert "content-encoding" in error_of(reply)["message"]


async def test_the_encoding_identity_is_none(world: World) -> None:
    headers = {**JSON, "content-encoding": "Identity"}
    assert (await world.http.post(QUOTE, content=body_of(), headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json-seq",
        "application/jsonx",
        "application/ json",
        "text/json",
        "application/xml",
        "*/*",
        ";application/json",
        "application/json, text/plain",
        "\xff",
        "x" * 10_000,
    ],
)
async def test_a_body_of_another_type_is_a_415(world: World, content_type: str) -> None:
    headers = {"content-type": content_type.encode("latin-1")}
    reply = await world.http.post(QUOTE, content=body_of(), headers=headers)
    assert_harmless(reply, world)
    assert reply.status_code == 415


PROMPTS = [
    "a private\0picture of nothing",
    "a private \u202epicture\u202c turned round",
    "a private \x1b[31mpicture\x1b[0m in red",
    "a private \x7f\x80\x9f picture of controls",
    "a private picture\r\nINFO serve_app forged a line",
    "a private picture \u2028 of separators \u2029",
    "صورة خاصة جدا للاختبار",
    "👩‍👩‍👧‍👦 a family, and \U0010ffff and \ufffe",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "{prompt} %s %(x)s ${HOME} {{7*7}} <script>alert(1)</script>",
]


async def test_any_text_is_a_prompt_and_none_is_logged(world: World, logs: Logs) -> None:
    for prompt in PROMPTS:
        reply = await world.draw(prompt=prompt, size="128x128")
        assert_harmless(reply, world)
        assert reply.status_code == 200
    assert [job.prompt for job in world.generator.jobs] == PROMPTS
    logs.keep_secret(*PROMPTS, world.key)
    assert "private" not in logs.text


async def test_logged_prompts_and_users_forge_no_line(make_world: MakeWorld, logs: Logs) -> None:
    world = await make_world(log_prompts=True)
    for prompt in PROMPTS:
        assert (await world.draw(prompt=prompt, user=prompt, size="128x128")).status_code == 200
    assert "private" in logs.text


async def test_the_longest_prompt_fits_however_it_is_written(make_world: MakeWorld) -> None:
    world = await make_world(models=[{"id": "flux-mini", "prompt_max_chars": 32_000}])
    for prompt in ("x" * 32_000, "é" * 32_000, "🎨" * 32_000):
        for ascii_only in (False, True):
            for more, status in (("", 200), (prompt[0], 400)):
                text = json.dumps({"prompt": prompt + more}, ensure_ascii=ascii_only)
                reply = await world.http.post(QUOTE, content=text.encode(), headers=JSON)
                assert_harmless(reply, world)
                assert reply.status_code == status, (len(text.encode()), ascii_only)
                if status == 400:
                    assert error_of(reply)["param"] == "prompt"


async def test_a_large_body_is_a_401_without_a_key_and_a_413_with_one(world: World) -> None:
    body = b" " * 10_000_000
    unknown: httpx.Response = await world.client(None).post(QUOTE, content=body, headers=JSON)
    known = await world.http.post(QUOTE, content=body, headers=JSON)
    for reply in (unknown, known):
        assert_harmless(reply, world)
    assert (unknown.status_code, known.status_code) == (401, 413)
