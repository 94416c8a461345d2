"""Image URLs and paths that were tampered with: no image, no file, no forged line in the log."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hostile import Logs, assert_harmless
from scripted import World, error_of

from serve_app.storage.signing import UrlSigner


async def drawn_url(world: World) -> tuple[str, str, str]:
    """Path, `exp` and `sig` of a fresh image."""
    url = urlsplit((await world.draw(size="128x128")).json()["data"][0]["url"])
    query = parse_qs(url.query)
    return url.path, query["exp"][0], query["sig"][0]


async def test_only_the_url_as_it_was_signed_shows_the_image(
    world: World, logs: Logs, subtests: pytest.Subtests
) -> None:
    path, exp, sig = await drawn_url(world)
    other_path, _, other_sig = await drawn_url(world)
    logs.keep_secret(sig, other_sig)
    good = f"exp={exp}&sig={sig}"
    queries = {
        "nothing": "",
        "no signature": f"exp={exp}",
        "no expiry": f"sig={sig}",
        "an empty signature": f"exp={exp}&sig=",
        "the signature of another image": f"exp={exp}&sig={other_sig}",
        "upper case": f"exp={exp}&sig={sig.upper()}",
        "a digit less": f"exp={exp}&sig={sig[:-1]}",
        "a digit more": f"exp={exp}&sig={sig}0",
        "a digit changed": f"exp={exp}&sig={'0' if sig[0] != '0' else '1'}{sig[1:]}",
        "a later expiry": f"exp={int(exp) + 1}&sig={sig}",
        "an expiry in another spelling": f"exp=0{exp}&sig={sig}",
        "an expiry with a sign": f"exp=%2B{exp}&sig={sig}",
        "an expiry with a blank": f"exp=%20{exp}&sig={sig}",
        "an expiry with a line break": f"exp={exp}%0A&sig={sig}",
        "an expiry with a fraction": f"exp={exp}.0&sig={sig}",
        "an expiry with full-width digits": f"exp=%EF%BC%91{exp[1:]}&sig={sig}",
        "an expiry of a thousand digits": f"exp={'9' * 1000}&sig={sig}",
        "a negative expiry": f"exp=-{exp}&sig={sig}",
        "NaN": f"exp=NaN&sig={sig}",
        "infinity": f"exp=Infinity&sig={sig}",
        "two signatures": f"{good}&sig={sig}",
        "another signature first": f"sig={other_sig}&{good}",
        "two expiries": f"exp=1&{good}",
        "a parameter in brackets": f"exp[]={exp}&sig[]={sig}",
        "a signature of other letters": f"exp={exp}&sig=%FF%00%ED%A0%80",
        "a huge signature": f"exp={exp}&sig={'a' * 60_000}",
        "many parameters": good + "".join(f"&x={i}" for i in range(5000)),
    }  # fmt: skip
    http = world.client(None)
    for what, query in queries.items():
        with subtests.test(what):
            reply = await http.get(f"{path}?{query}")
            assert_harmless(reply, world)
            assert (reply.status_code, error_of(reply)["code"]) == (403, "invalid_signature")
            assert sig not in reply.text
    with subtests.test("the path of another image"):
        assert (await http.get(f"{other_path}?{good}")).status_code == 403
    with subtests.test("the URL itself"):
        reply = await http.get(f"{path}?{good}&utm_source=mail")
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
        assert reply.content == b"png 128x128 seed %d" % world.generator.jobs[0].seeds[0]


async def test_an_expired_url_tells_only_its_owner_that_it_expired(world: World) -> None:
    path, _, sig = await drawn_url(world)
    assert world.config.store is not None
    signer = UrlSigner(world.config.store.signing_key_file.read_bytes().strip())
    image_id = path.split("/")[3]
    http = world.client(None)
    for expired in (0, 1, 999_999_999):
        genuine = await http.get(f"{path}?exp={expired}&sig={signer.sign(image_id, expired)}")
        forged = await http.get(f"{path}?exp={expired}&sig={sig}")
        for reply in (genuine, forged):
            assert_harmless(reply, world)
        assert (genuine.status_code, forged.status_code) == (410, 403)


async def test_an_id_is_no_path(world: World, subtests: pytest.Subtests) -> None:
    path, exp, sig = await drawn_url(world)
    image_id = path.split("/")[3]
    ids = [
        "../key", "..%2Fkey", "%2e%2e%2fkey", "..%5Ckey", "%2Fetc%2Fpasswd", "%00",
        f"{image_id}%00",
        f"{image_id}%00.png", f"{image_id}%0A", f"{image_id}%20", f"{image_id}.png", f"{image_id}/",
        f"{image_id[4:6]}%2F{image_id}", image_id.upper(), image_id.replace(".png", ".jpeg"),
        image_id.replace(".png", ".svg"), image_id.replace("_", "%5F%5F"),
        "img_" + "0" * 48 + ".png", "img_" + "x" * 10_000 + ".png", "%EF%BC%90" * 48,
        "%FF", "*", "..", ".", "~", "%252e%252e",
    ]  # fmt: skip
    http = world.client(None)
    for hostile in ids:
        with subtests.test(hostile[:40]):
            reply = await http.get(f"/v1/images/{hostile}/content?exp={exp}&sig={sig}")
            assert_harmless(reply, world)
            assert reply.status_code in {403, 404}
            assert error_of(reply)["code"] in {
                "image_not_found", "invalid_signature", "unknown_url",
            }  # fmt: skip


async def test_a_model_id_is_no_path_either(world: World, subtests: pytest.Subtests) -> None:
    for hostile in (
        "..%2F..%2Fetc%2Fpasswd", "flux-mini%00", "flux-mini%0A", "flux-mini/", "%2Fflux-mini",
        "FLUX-MINI", "%FF%FE", "a" * 60_000, "black-forest-labs%252FFLUX.1-schnell", "%E2%80%AE",
    ):  # fmt: skip
        with subtests.test(hostile[:40]):
            reply = await world.http.get(f"/v1/models/{hostile}")
            assert_harmless(reply, world)
            assert reply.status_code == 404
            assert error_of(reply)["code"] in {"model_not_found", "unknown_url"}
    for good in ("flux-mini", "black-forest-labs%2FFLUX.1-schnell", "%66lux-mini"):
        assert (await world.http.get(f"/v1/models/{good}")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%0AINFO%20serve_app%20forged%20a%20line",
        "/%0D%0Ax-injected%3A%20yes",
        "/%1B%5B31mred",
        "/%E2%80%AEdenrut",
        "/%00",
        "/v1/images/%0a/content",
    ],
)
async def test_a_path_forges_no_line_of_the_log(world: World, logs: Logs, path: str) -> None:
    reply = await world.client(None).get(path)
    assert_harmless(reply, world)
    assert reply.status_code == 404
    assert f"GET {path}".lower() in logs.text.lower()


@pytest.mark.parametrize("path", ["/v1/account", "/v1/models", "/v1/models/flux-mini", "/health"])
async def test_a_line_break_at_the_end_makes_it_another_path(world: World, path: str) -> None:
    """A filter in front would not see the path that it guards."""
    reply = await world.http.get(f"{path}%0A")
    assert_harmless(reply, world)
    assert (reply.status_code, error_of(reply)["code"]) == (404, "unknown_url")
