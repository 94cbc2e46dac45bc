"""An access token is believed only as RFC 9068 wants it, and for as long as it, its key and its id are good."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmp_core.errors import ConfigurationError, InvalidInput, Unauthenticated
from kmp_core.tokens import ForgetfulTokenSource, StaticKeysVerifier, TokenVerifier
from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.signing import SigningKey
from kmp_core.tokens.strict_json import encode_base64url

ISSUER = "https://auth.example"
NOW = 1_800_000_000.0
SUBJECT = "spiffe://acme.example/ns/skyline/sa/departures"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": SUBJECT,
    "client_id": "skyline/departures",
    "aud": "delays",
    "iat": int(NOW),
    "exp": int(NOW) + 300,
    "jti": "one",
}
LEFT_OUT = object()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.create("EdDSA", key_id="k1")


def verifier_of(*keys: SigningKey, **options: Any) -> StaticKeysVerifier:
    chosen = {"issuer": ISSUER, "audience": "delays", "trust_domain": "acme.example", **options}
    return StaticKeysVerifier([key.public_jwk() for key in keys], **chosen)


@pytest.fixture
def verifier(key: SigningKey, clock: Clock) -> StaticKeysVerifier:
    return verifier_of(key, clock=clock)


def claims(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**CLAIMS, **changes}.items() if value is not LEFT_OUT}


def sign_text(payload: bytes, key: SigningKey, header: dict[str, Any] | None = None) -> str:
    import jwt

    head = json.dumps(header or {"alg": key.algorithm, "typ": "at+jwt", "kid": key.key_id}).encode()
    signed = encode_base64url(head) + b"." + encode_base64url(payload)
    algorithm: Any = jwt.get_algorithm_by_name(key.algorithm)
    return (signed + b"." + encode_base64url(algorithm.sign(signed, key.private))).decode()


async def refusal(verifier: TokenVerifier, token: Any) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token)
    # The same words for every reason, and no cause that a debug page could show.
    assert str(caught.value) == "The token was refused"
    assert caught.value.__cause__ is None
    return caught.value.reason


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
async def test_good_token_names_the_caller(algorithm: Any, clock: Clock) -> None:
    key = SigningKey.create(algorithm)
    verifier = verifier_of(key, clock=clock)
    token = key.sign(claims(scope="read write", team="blue"))
    for _ in ("proved", "remembered"):
        principal = await verifier.verify(token)
        assert (principal.project, principal.service) == ("skyline", "departures")
        assert principal.subject == SUBJECT
        assert principal.audience == "delays"
        assert principal.client_id == "skyline/departures"
        assert principal.scopes == {"read", "write"}
        assert principal.claims["team"] == "blue"
        assert principal.issued_at == datetime.fromtimestamp(NOW, UTC)
        assert principal.expires_at == datetime.fromtimestamp(NOW + 300, UTC)


async def test_principal_cannot_be_changed_for_the_next_request(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    principal = await verifier.verify(key.sign(claims()))
    with pytest.raises(TypeError):
        principal.claims["sub"] = "someone else"  # type: ignore[index]
    with pytest.raises(AttributeError):
        principal.project = "acme"  # type: ignore[misc, assignment]
    assert "one" not in repr(principal.claims) or "claims" not in repr(principal)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://other.example"}, "issuer"),
        ({"iss": ISSUER + "/"}, "issuer"),
        ({"iss": LEFT_OUT}, "claims"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"aud": "tower"}, "audience"),
        ({"aud": "Delays"}, "audience"),
        ({"aud": "delays "}, "audience"),
        ({"aud": ["delays", "tower"]}, "audience"),
        ({"aud": ["delays", "delays"]}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": {"delays": True}}, "audience"),
        ({"aud": LEFT_OUT}, "claims"),
        ({"sub": LEFT_OUT}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": 7}, "claims"),
        ({"sub": "skyline/departures"}, "subject"),
        ({"sub": "https://acme.example/ns/skyline/sa/departures"}, "subject"),
        ({"sub": "spiffe://evil.example/ns/skyline/sa/departures"}, "subject"),
        ({"sub": "spiffe://ACME.example/ns/skyline/sa/departures"}, "subject"),
        ({"sub": "SPIFFE://acme.example/ns/skyline/sa/departures"}, "subject"),
        ({"sub": SUBJECT + "/"}, "subject"),
        ({"sub": SUBJECT + "?a"}, "subject"),
        ({"sub": "spiffe://acme.example/ns/../sa/departures"}, "subject"),
        ({"sub": "spiffe://acme.example/ns/a*/sa/departures"}, "subject"),
        ({"sub": "spiffe://acme.example/ns/skyline./sa/departures"}, "subject"),
        ({"sub": "spiffe://acme.example/ns/sk\u0443line/sa/departures"}, "subject"),
        ({"sub": "spiffe://acme.example/ns/skyline"}, "subject"),
        ({"sub": "spiffe://acme.example/user/skyline/sa/departures"}, "subject"),
        ({"sub": "spiffe://acme.example/" + "a" * 1100}, "claims"),
        ({"client_id": LEFT_OUT}, "claims"),
        ({"client_id": 1}, "claims"),
        ({"jti": LEFT_OUT}, "claims"),
        ({"jti": ""}, "claims"),
        ({"iat": LEFT_OUT}, "claims"),
        ({"iat": str(int(NOW))}, "claims"),
        ({"iat": True}, "claims"),
        ({"iat": int(NOW) + 11}, "not yet valid"),
        ({"nbf": int(NOW) + 11}, "not yet valid"),
        ({"nbf": "now"}, "claims"),
        ({"nbf": None}, "claims"),
        ({"exp": LEFT_OUT}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": None}, "claims"),
        ({"exp": str(int(NOW) + 300)}, "claims"),
        ({"exp": [int(NOW) + 300]}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": 10**30}, "claims"),
        ({"exp": int(NOW) - 1}, "lifetime"),
        ({"exp": int(NOW) + 25 * 3600}, "lifetime"),
        ({"iat": int(NOW) - 600, "exp": int(NOW) - 10}, "expired"),
        ({"scope": ["read"]}, "claims"),
        ({"scope": 1}, "claims"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
async def test_claim_that_is_missing_or_wrong_is_refused(
    changes: dict[str, Any], reason: str, verifier: StaticKeysVerifier, key: SigningKey
) -> None:
    assert await refusal(verifier, sign_text(json.dumps(claims(**changes)).encode(), key)) == reason


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "9" * 5000, "0x7fffffff"]
)
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
async def test_time_that_is_no_time_is_refused(
    name: str, number: str, verifier: StaticKeysVerifier, key: SigningKey
) -> None:
    text = json.dumps(claims(**{name: "@"})).replace('"@"', number)
    assert await refusal(verifier, sign_text(text.encode(), key)) in ("claims", "malformed")


PAYLOADS = {
    "project twice": json.dumps(CLAIMS)[:-1] + f', "sub": "{SUBJECT}"}}',
    "expiry twice": json.dumps(CLAIMS)[:-1] + ', "exp": 9999999999}',
    "twice in a nested object": json.dumps(CLAIMS)[:-1] + ', "x": {"a": 1, "a": 2}}',
    "deep": json.dumps(CLAIMS)[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}",
    "unclosed deep": '{"a":' * 1500,
    "NUL": json.dumps(CLAIMS)[:-1] + ', "x": "\\u0000"}',
    "lone surrogate": json.dumps(CLAIMS)[:-1] + ', "x": "\\udfff"}',
    "byte order mark": "\ufeff" + json.dumps(CLAIMS),
    "list": json.dumps([CLAIMS]),
    "text": json.dumps(json.dumps(CLAIMS)),
    "nothing": "",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_payload_that_can_be_read_in_two_ways_is_refused(
    payload: str, verifier: StaticKeysVerifier, key: SigningKey
) -> None:
    assert await refusal(verifier, sign_text(payload.encode(), key)) == "malformed"


async def test_payload_in_utf_16_is_refused(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    assert await refusal(verifier, sign_text(json.dumps(CLAIMS).encode("utf-16"), key)) == "malformed"


@pytest.mark.parametrize("kind", ["JWT", "jwt", "", "at", "application/jwt", "id_token", "dpop+jwt", "logout+jwt"])
async def test_token_of_another_type_is_refused(kind: str, verifier: StaticKeysVerifier, key: SigningKey) -> None:
    assert await refusal(verifier, key.sign(claims(), kind=kind)) == "type"


@pytest.mark.parametrize("header", [{}, {"typ": None}, {"typ": 1}, {"typ": ["at+jwt"]}])
async def test_token_without_type_is_refused(
    header: dict[str, Any], verifier: StaticKeysVerifier, key: SigningKey
) -> None:
    token = sign_text(json.dumps(CLAIMS).encode(), key, {"alg": "EdDSA", "kid": "k1", **header})
    assert await refusal(verifier, token) == "type"


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt"])
async def test_access_token_type_has_two_spellings(kind: str, verifier: StaticKeysVerifier, key: SigningKey) -> None:
    assert (await verifier.verify(key.sign(claims(), kind=kind))).project == "skyline"


async def test_id_token_is_no_access_token(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    id_token = {**claims(), "nonce": "n", "azp": "delays"}
    assert await refusal(verifier, key.sign(id_token, kind="JWT")) == "type"


@pytest.mark.parametrize(
    "kid",
    ["../k1", "/etc/passwd", "k2", "K1", "", "k1\x00", {"kid": "k1"}, ["k1"], 1, None, "k" * 1_000_000],
    ids=lambda kid: str(kid)[:12],
)
async def test_unknown_key_id_is_refused(kid: Any, verifier: StaticKeysVerifier, key: SigningKey) -> None:
    header = {"alg": "EdDSA", "typ": "at+jwt", "kid": kid}
    assert await refusal(verifier, sign_text(json.dumps(CLAIMS).encode(), key, header)) in (
        "key",
        "too large",
        "malformed",
    )


async def test_ten_thousand_unknown_key_ids_leave_no_trace(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    payload = json.dumps(CLAIMS).encode()
    token = sign_text(payload, key)
    tail = token.partition(".")[2]
    for number in range(10_000):
        header = json.dumps({"alg": "EdDSA", "typ": "at+jwt", "kid": f"random-{number}"}).encode()
        with pytest.raises(Unauthenticated):
            await verifier.verify(f"{encode_base64url(header).decode()}.{tail}")
    assert sum(verifier.cached) == 0
    await verifier.verify(token)
    assert sum(verifier.cached) == 1


async def test_key_without_a_name_serves_tokens_without_one(clock: Clock) -> None:
    key = SigningKey.create("EdDSA")
    jwk = {name: value for name, value in key.public_jwk().items() if name != "kid"}
    verifier = StaticKeysVerifier([jwk], issuer=ISSUER, audience="delays", trust_domain="acme.example", clock=clock)
    header = {"alg": "EdDSA", "typ": "at+jwt"}
    assert await verifier.verify(sign_text(json.dumps(CLAIMS).encode(), key, header))


async def test_among_several_keys_a_token_must_name_its_own(clock: Clock) -> None:
    one, two = SigningKey.create("EdDSA", key_id="one"), SigningKey.create("ES256", key_id="two")
    verifier = verifier_of(one, two, clock=clock)
    payload = json.dumps(CLAIMS).encode()
    assert await verifier.verify(one.sign(claims()))
    assert await verifier.verify(two.sign(claims()))
    assert await refusal(verifier, sign_text(payload, one, {"alg": "EdDSA", "typ": "at+jwt"})) == "key"
    header = {"alg": "EdDSA", "typ": "at+jwt", "kid": "two"}
    assert await refusal(verifier, sign_text(payload, one, header)) == "algorithm"


async def test_header_proved_once_does_not_prove_the_next_signature(
    verifier: StaticKeysVerifier, key: SigningKey
) -> None:
    good = key.sign(claims())
    await verifier.verify(good)
    other = SigningKey.create("EdDSA", key_id="k1").sign(claims(jti="two"))
    assert other.split(".")[0] == good.split(".")[0]
    assert await refusal(verifier, other) == "signature"


@pytest.mark.parametrize("seen", [False, True], ids=["new", "seen before"])
async def test_token_ends_when_it_expires(
    seen: bool, verifier: StaticKeysVerifier, key: SigningKey, clock: Clock
) -> None:
    token = key.sign(claims())
    if seen:
        await verifier.verify(token)
    clock.now = NOW + 309.9
    await verifier.verify(token)
    clock.now = NOW + 310
    assert await refusal(verifier, token) == "expired"


@pytest.mark.parametrize("seen", [False, True], ids=["new", "seen before"])
@pytest.mark.parametrize(
    "begins", [{"nbf": 100}, {"iat": 100}, {"iat": 100, "nbf": -100}, {"iat": -100, "nbf": 100}], ids=str
)
async def test_token_does_not_begin_before_its_time(
    begins: dict[str, int], seen: bool, verifier: StaticKeysVerifier, key: SigningKey, clock: Clock
) -> None:
    token = key.sign(claims(**{name: int(NOW) + seconds for name, seconds in begins.items()}))
    if seen:
        clock.now = NOW + 90
        await verifier.verify(token)
    clock.now = NOW + 89.9
    assert await refusal(verifier, token) == "not yet valid"


@pytest.mark.parametrize("seen", [False, True], ids=["new", "seen before"])
async def test_revoked_token_is_refused(seen: bool, verifier: StaticKeysVerifier, key: SigningKey) -> None:
    token, other = key.sign(claims()), key.sign(claims(jti="two"))
    if seen:
        await verifier.verify(token)
    verifier.revoke("one")
    assert await refusal(verifier, token) == "revoked"
    assert await verifier.verify(other)


async def test_revocation_lasts_as_long_as_the_token_could(
    verifier: StaticKeysVerifier, key: SigningKey, clock: Clock
) -> None:
    token = key.sign(claims(exp=int(NOW) + 24 * 3600))
    verifier.revoke("one")
    clock.now = NOW + 24 * 3600
    verifier.revoke("another")
    assert await refusal(verifier, token) == "revoked"


async def test_withdrawn_key_ends_its_tokens_at_once(clock: Clock) -> None:
    old, new = SigningKey.create("EdDSA", key_id="old"), SigningKey.create("EdDSA", key_id="new")
    verifier = verifier_of(old, clock=clock)
    before, after = old.sign(claims()), new.sign(claims(jti="two"))
    await verifier.verify(before)
    verifier.replace_keys([old.public_jwk(), new.public_jwk()])
    assert await verifier.verify(before)
    assert await verifier.verify(after)
    verifier.replace_keys({"keys": [new.public_jwk()]})
    assert await refusal(verifier, before) == "key"
    assert await verifier.verify(after)
    assert verifier.key_ids == {"new"}


async def test_other_key_under_the_same_name_ends_the_old_ones_tokens(clock: Clock) -> None:
    old, new = SigningKey.create("EdDSA", key_id="k"), SigningKey.create("EdDSA", key_id="k")
    verifier = verifier_of(old, clock=clock)
    token = old.sign(claims())
    await verifier.verify(token)
    verifier.replace_keys([new.public_jwk()])
    assert await refusal(verifier, token) == "signature"


async def test_same_keys_again_keep_what_was_proved(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    await verifier.verify(key.sign(claims()))
    verifier.replace_keys([key.public_jwk()])
    assert sum(verifier.cached) == 1


DAMAGED: dict[str, Any] = {
    "empty": [],
    "empty set": {"keys": []},
    "no set": {},
    "no list": {"keys": "abc"},
    "nothing": {"keys": None},
    "no key": ["abc"],
    "only for encryption": [{"kty": "RSA", "use": "enc", "n": "AQ", "e": "AQAB"}],
    "only a kind nobody knows": [{"kty": "quantum"}],
    "damaged": [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "a"}],
    "shared secret": [{"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUu"}],
}


@pytest.mark.parametrize("keys", DAMAGED.values(), ids=DAMAGED)
async def test_damaged_key_set_never_drops_a_good_key(keys: Any, verifier: StaticKeysVerifier, key: SigningKey) -> None:
    with pytest.raises(ConfigurationError):
        verifier.replace_keys(keys)
    assert await verifier.verify(key.sign(claims()))


def test_private_key_does_not_belong_in_a_verifier(key: SigningKey) -> None:
    with pytest.raises(ConfigurationError, match="secret key") as caught:
        StaticKeysVerifier(
            [key.public_jwk(), {**key.public_jwk(), "kid": "b", "d": "c2VjcmV0LW9mLXRoZS1rZXk"}],
            issuer=ISSUER,
            audience="delays",
            trust_domain="acme.example",
        )
    assert "c2VjcmV0" not in str(caught.value)
    assert "keys[1]" in str(caught.value)


def test_two_keys_of_one_name_are_refused(key: SigningKey) -> None:
    with pytest.raises(ConfigurationError, match="two keys"):
        verifier_of(key, SigningKey.create("EdDSA", key_id="k1"))


def test_key_of_an_unknown_kind_is_passed_over(key: SigningKey, clock: Clock) -> None:
    verifier = verifier_of(key, clock=clock)
    verifier.replace_keys({"keys": [{"kty": "quantum", "kid": "q"}, key.public_jwk()]})
    assert verifier.key_ids == {"k1"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"leeway": "2m"}, "leeway"),
        ({"leeway": -1}, "leeway"),
        ({"max_lifetime": "x"}, "max_lifetime"),
        ({"issuer": ""}, "issuer"),
        ({"audience": None}, "audience"),
        ({"trust_domain": ""}, "trust_domain"),
        ({"trust_domain": "a/b"}, "SPIFFE ID"),
    ],
)
def test_wrong_rule_is_refused(options: dict[str, Any], field: str, key: SigningKey) -> None:
    with pytest.raises(InvalidInput) as caught:
        verifier_of(key, **options)
    assert caught.value.field == field


async def test_memory_of_tokens_is_bounded(key: SigningKey, clock: Clock) -> None:
    verifier = verifier_of(key, clock=clock, cache_size=10)
    tokens = [key.sign(claims(jti=str(number))) for number in range(50)]
    for token in tokens:
        await verifier.verify(token)
        await verifier.verify(tokens[0])
        assert sum(verifier.cached) <= 10


@pytest.mark.parametrize("token", [None, 1, b"a.b.c", "é.b.c", "a.b.\ud800", "", "a" * 20_000, "a" * 2_000_000])
async def test_what_is_no_token_is_refused(token: Any, verifier: StaticKeysVerifier) -> None:
    assert await refusal(verifier, token) in ("malformed", "too large")


async def test_size_of_a_good_token_is_bounded(verifier: StaticKeysVerifier, key: SigningKey) -> None:
    assert await verifier.verify(key.sign(claims(note="x" * 8_000)))
    assert await refusal(verifier, key.sign(claims(note="x" * 13_000))) == "too large"


async def test_rotation_under_traffic_loses_no_request() -> None:
    authority = DevelopmentAuthority()
    verifier = authority.verifier(audience="delays")
    done = asyncio.Event()
    counts = [0] * 8

    async def call(number: int) -> None:
        while not done.is_set():
            token = authority.issue(project="skyline", service=f"s{number}", audience="delays")
            for _ in range(3):
                assert (await verifier.verify(token)).service == f"s{number}"
                counts[number] += 1
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(call(number))
        old = next(iter(verifier.key_ids))
        for _ in range(20):
            # The order of every rotation: publish the new key, sign with it, withdraw the old when its tokens ended.
            new = authority.rotate()
            verifier.replace_keys(authority.jwks())
            reached = min(counts) + 10
            while min(counts) < reached:  # noqa: ASYNC110 - the traffic itself is what is waited for
                await asyncio.sleep(0)
            authority.withdraw(old)
            verifier.replace_keys(authority.jwks())
            old = new
        done.set()
    assert verifier.key_ids == {old}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(min_value=0), replacement=st.integers(0, 255), data=st.data())
def test_no_changed_character_survives(position: int, replacement: int, data: st.DataObject) -> None:
    token = data.draw(st.sampled_from(TOKENS))
    place = position % len(token)
    changed = token[:place] + chr(replacement) + token[place + 1 :]
    if changed == token:
        assert FUZZED.verify_now(changed).project == "skyline"
        return
    with pytest.raises(Unauthenticated):
        FUZZED.verify_now(changed)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.binary(), st.from_regex(r"[\w-]+\.[\w-]*\.[\w-]+"), st.none(), st.integers()))
def test_anything_at_all_raises_one_error_only(token: Any) -> None:
    with pytest.raises(Unauthenticated):
        FUZZED.verify_now(token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(CLAIMS)), value=JSON)
def test_any_value_of_a_claim_is_right_or_refused(name: str, value: Any) -> None:
    text = json.dumps({**CLAIMS, name: value}).encode()
    try:
        principal = FUZZED.verify_now(sign_text(text, FUZZ_KEY))
    except Unauthenticated:
        return
    assert (principal.project, principal.service, principal.audience) == ("skyline", "departures", "delays")
    assert principal.issuer == ISSUER


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "cty", "x"]), JSON))
def test_any_header_is_right_or_refused(header: dict[str, Any]) -> None:
    full = {"alg": "EdDSA", "kid": "f", "typ": "at+jwt", **header}
    try:
        FUZZED.verify_now(sign_text(json.dumps(CLAIMS).encode(), FUZZ_KEY, full))
    except Unauthenticated:
        return
    assert (full["alg"], full["kid"]) == ("EdDSA", "f")
    assert full["typ"].lower() == "at+jwt"
    assert "crit" not in full


FUZZ_KEY = SigningKey.create("EdDSA", key_id="f")
FUZZ_ES = SigningKey.create("ES256", key_id="e")
FUZZED = verifier_of(FUZZ_KEY, FUZZ_ES, clock=Clock())
TOKENS = [FUZZ_KEY.sign(CLAIMS), FUZZ_ES.sign(CLAIMS)]


async def test_protocols_are_what_they_say(verifier: StaticKeysVerifier) -> None:
    assert isinstance(verifier, TokenVerifier)
    assert not isinstance(verifier, ForgetfulTokenSource)


async def test_expired_token_can_be_issued_for_a_test() -> None:
    authority = DevelopmentAuthority()
    past = datetime.now(UTC) - timedelta(hours=1)
    token = authority.issue(project="skyline", service="departures", audience="delays", issued_at=past)
    assert await refusal(authority.verifier(audience="delays"), token) == "expired"
