import hashlib

from serve_app.metering import keys


def test_a_secret_looks_like_a_key_and_has_256_bits():
    secret = keys.new_secret()
    body = secret.removeprefix("sk-")
    assert secret.startswith("sk-")
    assert set(body) <= set(keys.SECRET_ALPHABET)
    assert len(keys.SECRET_ALPHABET) ** len(body) >= 2**256


def test_the_alphabet_has_no_characters_that_look_alike_or_need_quoting():
    assert not set("0OIl-_+/=") & set(keys.SECRET_ALPHABET)
    assert keys.SECRET_ALPHABET.isalnum()
    assert len(set(keys.SECRET_ALPHABET)) == 58


def test_secrets_do_not_repeat():
    assert len({keys.new_secret() for _ in range(1000)}) == 1000


def test_a_digest_is_the_sha256_of_the_whole_secret():
    assert keys.digest("sk-a") == hashlib.sha256(b"sk-a").hexdigest()


def test_only_the_same_secret_matches():
    assert keys.matches("sk-a", keys.digest("sk-a"))
    assert not keys.matches("sk-b", keys.digest("sk-a"))
    assert not keys.matches("", keys.digest("sk-a"))


def test_a_secret_of_any_characters_has_a_digest():
    for secret in ("ключ", "\ud800", "\x00", "🔑"):
        assert len(keys.digest(secret)) == 64


def test_a_display_prefix_gives_away_little():
    assert keys.display_prefix("sk-" + "x" * 44) == "sk-xxxxxx"
    assert keys.display_prefix("12345678") == "12"
