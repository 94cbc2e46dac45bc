"""A compact JWS is believed only when one key, fixed beforehand, proves it: published vectors, then hostile forms."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kmp_core.errors import InvalidInput, Unauthenticated
from kmp_core.tokens import jws
from kmp_core.tokens.signing import SigningKey
from kmp_core.tokens.strict_json import decode_base64url, encode_base64url

JOE = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"  # RFC 7515, A.1
A1_KEY = {
    "kty": "oct",
    "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
}
A1 = f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JOE}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
A2_KEY = {
    "kty": "RSA",
    "n": (
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZ"
        "S-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2"
        "R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcD"
        "TW9gb54h4FRWyuXpoQ"
    ),
    "e": "AQAB",
}
A2 = (
    f"eyJhbGciOiJSUzI1NiJ9.{JOE}."
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t"
    "1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12j"
    "zDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQ"
    "Ge77Rw"
)
A3_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
A3 = (
    f"eyJhbGciOiJFUzI1NiJ9.{JOE}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
)
A4_KEY = {
    "kty": "EC",
    "crv": "P-521",
    "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
    "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
}
A4 = (
    "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA."
    "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZC"
    "PEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
)
ED_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
ED = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)

VECTORS = {
    "RFC 7515 A.1 HS256": (A1, A1_KEY, decode_base64url(JOE.encode())),
    "RFC 7515 A.2 RS256": (A2, A2_KEY, decode_base64url(JOE.encode())),
    "RFC 7515 A.3 ES256": (A3, A3_KEY, decode_base64url(JOE.encode())),
    "RFC 7515 A.4 ES512": (A4, A4_KEY, b"Payload"),
    "RFC 8037 A.4 EdDSA": (ED, ED_KEY, b"Example of Ed25519 signing"),
}
vectors = pytest.mark.parametrize(("compact", "jwk", "content"), VECTORS.values(), ids=VECTORS)


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return encode_base64url(raw).decode()


def sign(header: object, payload: object, key: SigningKey) -> str:
    """Any header and payload, whatever they are, under a signature that is right."""
    import jwt

    signed = f"{segment(header)}.{segment(payload)}"
    algorithm: Any = jwt.get_algorithm_by_name(key.algorithm)
    return f"{signed}.{segment(algorithm.sign(signed.encode(), key.private))}"


@pytest.fixture(scope="module")
def ed() -> SigningKey:
    return SigningKey.create("EdDSA", key_id="k1")


@pytest.fixture(scope="module")
def rs() -> SigningKey:
    return SigningKey.create("RS256", key_id="k1")


def refused(compact: Any, jwk: dict[str, Any], **options: Any) -> str:
    with pytest.raises(Unauthenticated) as caught:
        jws.verify(compact, jwk, **options)
    assert str(caught.value) == "The token was refused"
    return caught.value.reason


@vectors
def test_published_vector_verifies(compact: str, jwk: dict[str, str], content: bytes) -> None:
    assert jws.verify(compact, jwk, symmetric=True) == content
    assert jws.verify(compact.encode(), jwk, symmetric=True) == content


@vectors
def test_no_single_character_of_a_vector_can_change(compact: str, jwk: dict[str, str], content: bytes) -> None:
    for position, old in enumerate(compact):
        new = "A" if old != "A" else "B"
        refused(compact[:position] + new + compact[position + 1 :], jwk, symmetric=True)


@vectors
def test_key_of_another_vector_does_not_verify(compact: str, jwk: dict[str, str], content: bytes) -> None:
    for other, key, _ in VECTORS.values():
        if other != compact:
            refused(compact, key, symmetric=True)


def test_shared_secret_must_be_allowed_explicitly() -> None:
    with pytest.raises(InvalidInput, match="shared secret"):
        jws.verify(A1, A1_KEY)


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "none "])
@vectors
def test_unsigned_token_is_refused_in_every_spelling(
    name: str, compact: str, jwk: dict[str, str], content: bytes
) -> None:
    signature = compact.rpartition(".")[2]
    for tail in ("", signature, "AA"):
        refused(f"{segment({'alg': name})}.{JOE}.{tail}", jwk, symmetric=True)


@pytest.mark.parametrize("algorithm", ["HS256", "RS384", "PS256", "ES256", "EdDSA", "rs256", 1, None, ["RS256"]])
def test_header_cannot_choose_the_algorithm(algorithm: Any, rs: SigningKey) -> None:
    assert refused(sign({"alg": algorithm}, {}, rs), rs.public_jwk()) == "algorithm"


def test_public_key_is_no_shared_secret(rs: SigningKey) -> None:
    public = rs.private.public_key()
    encodings, formats = serialization.Encoding, serialization.PublicFormat
    secrets = [
        public.public_bytes(encodings.PEM, formats.SubjectPublicKeyInfo),
        public.public_bytes(encodings.DER, formats.SubjectPublicKeyInfo),
        public.public_bytes(encodings.PEM, formats.PKCS1),
        public.public_bytes(encodings.DER, formats.PKCS1),
        json.dumps(rs.public_jwk()).encode(),
        rs.public_jwk()["n"].encode(),
    ]
    for secret in secrets:
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "k1"}):
            signed = f"{segment(header)}.{segment({})}"
            tag = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
            assert refused(f"{signed}.{segment(tag)}", rs.public_jwk()) == "algorithm"


@pytest.mark.parametrize(
    "extra",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"b64": True},
        {"zip": "DEF"},
        {"enc": "A128GCM"},
        {"jku": "https://attacker.example/jwks.json"},
        {"jwk": ED_KEY},
        {"x5u": "https://attacker.example/cert.pem"},
        {"x5c": ["MIIB"]},
    ],
    ids=json.dumps,
)
def test_header_that_brings_a_key_or_an_extension_is_refused(extra: dict[str, Any], ed: SigningKey) -> None:
    assert refused(sign({"alg": "EdDSA", **extra}, {}, ed), ed.public_jwk()) == "header"


@pytest.mark.parametrize("kid", ["", "x" * 257, {"a": 1}, ["k1"], 1, None, True], ids=lambda kid: str(kid)[:8])
def test_key_id_of_another_shape_is_refused(kid: Any, ed: SigningKey) -> None:
    nameless = {name: value for name, value in ed.public_jwk().items() if name != "kid"}
    assert refused(sign({"alg": "EdDSA", "kid": kid}, {}, ed), nameless) == "key"


def test_key_id_of_another_key_is_refused(ed: SigningKey) -> None:
    assert refused(sign({"alg": "EdDSA", "kid": "../../k1"}, {}, ed), ed.public_jwk()) == "key"


HEADERS = {
    "twice": b'{"alg":"EdDSA","alg":"EdDSA"}',
    "twice, one escaped": b'{"alg":"EdDSA","\\u0061lg":"EdDSA"}',
    "byte order mark": b'\xef\xbb\xbf{"alg":"EdDSA"}',
    "UTF-16": '{"alg":"EdDSA"}'.encode("utf-16"),
    "UTF-16 without mark": '{"alg":"EdDSA"}'.encode("utf-16-le"),
    "not UTF-8": b'{"alg":"EdDSA","x":"\xff"}',
    "overlong UTF-8": b'{"alg":"EdDSA","x":"\xc0\x80"}',
    "surrogate in UTF-8": b'{"alg":"EdDSA","x":"\xed\xa0\x80"}',
    "raw NUL": b'{"alg":"EdDSA","x":"\x00"}',
    "escaped NUL": b'{"alg":"EdDSA","x":"\\u0000"}',
    "escaped NUL deeper": b'{"alg":"EdDSA","x":[{"\\u0000":1}]}',
    "lone surrogate": b'{"alg":"EdDSA","x":"\\ud800"}',
    "surrogates reversed": b'{"alg":"EdDSA","x":"\\udc00\\ud800"}',
    "NaN": b'{"alg":"EdDSA","x":NaN}',
    "infinity": b'{"alg":"EdDSA","x":-Infinity}',
    "list": b'["alg","EdDSA"]',
    "string": b'"EdDSA"',
    "number": b"1",
    "empty": b" ",
    "two": b'{"alg":"EdDSA"}{}',
    "deep": b'{"alg":"EdDSA","x":' + b"[" * 200 + b"]" * 200 + b"}",
    "deep, with brackets in text": b'{"alg":"EdDSA","y":"]]]]]]]]]]","x":' + b"[" * 17 + b"]" * 17 + b"}",
    "trailing comma": b'{"alg":"EdDSA",}',
    "comment": b'{"alg":"EdDSA"/**/}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header_that_can_be_read_in_two_ways_is_refused(header: bytes, ed: SigningKey) -> None:
    assert refused(sign(header, {}, ed), ed.public_jwk()) == "malformed"


def test_text_that_only_looks_dangerous_is_read(ed: SigningKey) -> None:
    header = b'{"alg":"EdDSA","x":"\\\\u0000 \\ud83d\\ude00 [[[[[[[[[[[[[[[[[[[["}'
    assert jws.verify(sign(header, b"ok", ed), ed.public_jwk()) == b"ok"


def test_base64_has_one_spelling(ed: SigningKey) -> None:
    good = sign({"alg": "EdDSA"}, b"ab", ed)
    header, payload, signature = good.split(".")
    assert jws.verify(good, ed.public_jwk()) == b"ab"
    for bad in (
        f"{header}=.{payload}.{signature}",
        f"{header}.{payload}=.{signature}",
        f"{header}.{payload}.{signature}==",
        f"{header}.{payload}\n.{signature}",
        f"{header}.{payload}.{signature}\n",
        f" {header}.{payload}.{signature}",
        f"{header}.{payload}.{signature}A",
        f"{header}.{payload}.{signature}.",
        f"{header}.{payload}..{signature}",
        f".{payload}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}..{signature}",
        "",
        ".",
        "..",
        good.replace(".", "\u2024"),
        good + "\ud800",
    ):
        assert refused(bad, ed.public_jwk()) in ("malformed", "signature"), bad


def test_trailing_bits_of_base64_must_be_zero(ed: SigningKey) -> None:
    good = sign({"alg": "EdDSA"}, b"a", ed)  # 64 bytes of signature end in a group of one: four spare bits
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(good[-1]) | 1]
    lenient = base64.urlsafe_b64decode((good[:-1] + last).rpartition(".")[2] + "==")
    assert lenient == base64.urlsafe_b64decode(good.rpartition(".")[2] + "==")
    assert refused(good[:-1] + last, ed.public_jwk()) == "malformed"


@pytest.mark.parametrize("text", [b"+A", b"/A", b"A=", b"A", b"AAAAA", b"A A", b"AA\n", b"AB", b"AAB", b"A.AA"])
def test_base64url_of_another_spelling_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_base64url(text)


@pytest.mark.parametrize("size", range(9))
def test_base64url_returns_what_was_encoded(size: int) -> None:
    content = bytes(range(250, 250 + size)) if size < 6 else b"\xff\xfe\xfb" * size
    assert decode_base64url(encode_base64url(content)) == content


@pytest.mark.parametrize("value", [None, 1, {"a": 1}, ["a.b.c"], object()])
def test_what_is_no_text_is_no_token(value: Any, ed: SigningKey) -> None:
    assert refused(value, ed.public_jwk()) == "malformed"


def test_size_is_bounded_before_anything_is_read(ed: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jws, "decode_base64url", lambda _: pytest.fail("read before its size was known"))
    assert refused("a" * 17_000, ed.public_jwk()) == "too large"
    monkeypatch.undo()
    assert refused(sign({"alg": "EdDSA", "kid": "k" * 3000}, {}, ed), ed.public_jwk()) == "too large"


def test_elliptic_signature_has_exactly_its_length() -> None:
    head, _, signature = A3.rpartition(".")
    raw = decode_base64url(signature.encode())
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    for other in (der, raw[:63], raw + b"\0", raw[:32] + b"\0" + raw[32:], bytes(64), raw[:32] + bytes(32)):
        assert refused(f"{head}.{segment(other)}", A3_KEY) == "signature"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use": "enc"}, "jwk.use"),
        ({"key_ops": ["sign"]}, "jwk.key_ops"),
        ({"key_ops": []}, "jwk.key_ops"),
        ({"key_ops": "verify"}, "jwk.key_ops"),
        ({"key_ops": ["verify", "encrypt"]}, "jwk.key_ops"),
        ({"alg": "RS256"}, "jwk.alg"),
        ({"alg": "ES384"}, "jwk.alg"),
        ({"alg": "none"}, "jwk.alg"),
        ({"alg": 7}, "jwk.alg"),
        ({"crv": "secp256k1"}, "jwk.crv"),
        ({"crv": ["P-256"]}, "jwk.crv"),
        ({"kty": "XX"}, "jwk.kty"),
        ({"kty": None}, "jwk.kty"),
        ({"kid": 5}, "jwk.kid"),
        ({"x": A3_KEY["y"]}, "jwk"),
        ({"x": "AAAA"}, "jwk.x"),
        ({"x": None}, "jwk.x"),
        ({"y": "é"}, "jwk.y"),
        ({"y": "A"}, "jwk.y"),
    ],
)
def test_key_that_must_not_verify_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        jws.verify(A3, {**A3_KEY, **change})
    assert caught.value.field == field
    assert A3_KEY["y"] not in str(caught.value)


@pytest.mark.parametrize("change", [{"use": "sig"}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"]}])
def test_key_made_for_signatures_verifies(change: dict[str, Any]) -> None:
    assert jws.verify(A3, {**A3_KEY, **change})


def test_weak_and_monstrous_rsa_keys_are_refused() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key().public_numbers().n
    for modulus in (weak, (1 << 2046) + 1, (1 << 16384) - 1):
        n = encode_base64url(modulus.to_bytes((modulus.bit_length() + 7) // 8)).decode()
        with pytest.raises(InvalidInput, match="2048 to 8192"):
            jws.verify(A2, {**A2_KEY, "n": n})


def test_pss_must_be_asked_for(rs: SigningKey) -> None:
    import jwt

    token = jwt.encode({"a": 1}, rs.private, algorithm="PS256")
    bare = {name: value for name, value in rs.public_jwk().items() if name != "alg"}
    assert refused(token, bare) == "algorithm"
    assert json.loads(jws.verify(token, bare, algorithm="PS256")) == {"a": 1}
    with pytest.raises(InvalidInput, match=r"jwk\.alg"):
        jws.verify(token, rs.public_jwk(), algorithm="PS256")


def test_short_shared_secret_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too short"):
        jws.verify(A1, {"kty": "oct", "k": "c2VjcmV0"}, symmetric=True)
