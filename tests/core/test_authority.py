"""The development authority: what it registers, issues and refuses, over HTTP as RFC 6749 wants it."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote_plus

import httpx
import pytest
from pydantic import SecretStr

from kmp_core.errors import ConfigurationError, InvalidInput, PermissionDenied, Unauthenticated
from kmp_core.tokens import jws
from kmp_core.tokens.authority import Credential, DevelopmentAuthority
from kmp_core.tokens.authority_app import _Attempts, _Refused, authority_app

FORM = {"grant_type": "client_credentials"}


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(clock: Clock) -> DevelopmentAuthority:
    return DevelopmentAuthority(clock=clock)


@pytest.fixture
def credential(authority: DevelopmentAuthority) -> Credential:
    return authority.register("skyline", "departures", audiences=["delays", "archive"], scopes=["read", "write"])


@pytest.fixture
def http(authority: DevelopmentAuthority) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(authority.app()), base_url=authority.issuer)


def basic(credential: Credential) -> tuple[str, str]:
    return credential.client_id, credential.secret.get_secret_value()


async def ask(http: httpx.AsyncClient, credential: Credential, **form: str) -> httpx.Response:
    return await http.post("/token", data={**FORM, **form}, auth=basic(credential))


async def test_registered_service_gets_a_token_that_verifies(
    authority: DevelopmentAuthority, http: httpx.AsyncClient, credential: Credential
) -> None:
    answer = await ask(http, credential, audience="delays")
    assert answer.status_code == 200
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    content = answer.json()
    assert (content["token_type"], content["expires_in"], content["scope"]) == ("Bearer", 300, "read write")
    principal = await authority.verifier(audience="delays").verify(content["access_token"])
    assert (principal.project, principal.service, principal.scopes) == ("skyline", "departures", {"read", "write"})
    with pytest.raises(Unauthenticated):
        await authority.verifier(audience="archive").verify(content["access_token"])


async def test_scope_narrows_the_token(http: httpx.AsyncClient, credential: Credential) -> None:
    assert (await ask(http, credential, audience="delays", scope="read")).json()["scope"] == "read"
    refused = await ask(http, credential, audience="delays", scope="read admin")
    assert (refused.status_code, refused.json()) == (400, {"error": "invalid_scope"})


@pytest.mark.parametrize(
    "form", [{"audience": "tower"}, {"resource": "https://tower"}, {}, {"audience": "delays archive"}]
)
async def test_audience_that_was_not_registered_is_refused(
    form: dict[str, str], http: httpx.AsyncClient, credential: Credential
) -> None:
    answer = await ask(http, credential, **form)
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_target"})


async def test_only_audience_need_not_be_named(authority: DevelopmentAuthority, http: httpx.AsyncClient) -> None:
    credential = authority.register("skyline", "reports", audiences=["delays"])
    token = (await ask(http, credential)).json()["access_token"]
    assert (await authority.verifier(audience="delays").verify(token)).service == "reports"


async def test_service_without_audiences_gets_nothing(authority: DevelopmentAuthority, http: httpx.AsyncClient) -> None:
    credential = authority.register("skyline", "hermit")
    assert (await ask(http, credential)).json() == {"error": "invalid_target"}


async def test_wrong_secret_and_unknown_client_are_told_alike(http: httpx.AsyncClient, credential: Credential) -> None:
    wrong = await ask(http, Credential(credential.client_id, SecretStr("wrong")), audience="delays")
    unknown = await ask(http, Credential("harbour/tower", credential.secret), audience="delays")
    for answer in (wrong, unknown):
        assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
        assert answer.headers["www-authenticate"].startswith("Basic ")
    assert wrong.headers.multi_items() == unknown.headers.multi_items()


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic !!!", "Basic YQ==", "Bearer abc", "Basic gIA6", "Basic " + "A" * 9000],
)
async def test_damaged_client_authentication_is_refused(header: str, http: httpx.AsyncClient) -> None:
    answer = await http.post("/token", data=FORM, headers={"authorization": header})
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})


async def test_credentials_are_form_decoded(authority: DevelopmentAuthority, http: httpx.AsyncClient) -> None:
    credential = authority.register("skyline", "reports", audiences=["delays"])
    encoded = tuple(quote_plus(part) for part in basic(credential))
    assert encoded[0] == "skyline%2Freports"
    answer = await http.post("/token", data=FORM, auth=(encoded[0], encoded[1]))
    assert answer.status_code == 200


BAD: list[tuple[Any, dict[str, str], str, int]] = [
    ("grant_type=password", {}, "unsupported_grant_type", 400),
    ("audience=delays", {}, "invalid_request", 400),
    ("", {}, "invalid_request", 400),
    ("grant_type=client_credentials&grant_type=client_credentials", {}, "invalid_request", 400),
    ("grant_type=client_credentials&audience=delays&audience=tower", {}, "invalid_request", 400),
    ("grant_type=client_credentials&audience=delays&resource=delays", {}, "invalid_request", 400),
    ("grant_type=client_credentials&client_secret=x", {}, "invalid_request", 400),
    ("grant_type=client_credentials&scope=%ff", {}, "invalid_request", 400),
    ("&".join(f"x{n}=1" for n in range(100)), {}, "invalid_request", 400),
    ('{"grant_type":"client_credentials"}', {"content-type": "application/json"}, "invalid_request", 400),
    ("grant_type=client_credentials&x=" + "a" * 20_000, {}, "invalid_request", 413),
]


@pytest.mark.parametrize(("body", "headers", "error", "status"), BAD, ids=[str(case[0])[:40] for case in BAD])
async def test_damaged_request_is_refused(
    body: str, headers: dict[str, str], error: str, status: int, http: httpx.AsyncClient, credential: Credential
) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded", **headers}
    answer = await http.post("/token", content=body, headers=kind, auth=basic(credential))
    assert (answer.status_code, answer.json()) == (status, {"error": error})


async def test_guessing_is_bounded(authority: DevelopmentAuthority, credential: Credential, clock: Clock) -> None:
    def client(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(authority_app(authority, attempts=3, window=60), client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url=authority.issuer)

    wrong = Credential(credential.client_id, SecretStr("guess"))
    async with client("10.0.0.1") as http:
        assert [(await ask(http, wrong)).status_code for _ in range(5)] == [401, 401, 401, 429, 429]
        locked = await ask(http, credential, audience="delays")
        assert locked.status_code == 429
        assert locked.headers["retry-after"] == "61"
        clock.now += 61
        assert (await ask(http, credential, audience="delays")).status_code == 200
        assert [(await ask(http, wrong)).status_code for _ in range(2)] == [401, 401]
        assert (await ask(http, credential, audience="delays")).status_code == 200  # a right one starts anew
        assert [(await ask(http, wrong)).status_code for _ in range(3)] == [401, 401, 401]


async def test_guesser_locks_out_only_its_own_address(authority: DevelopmentAuthority, credential: Credential) -> None:
    app = authority_app(authority, attempts=1)
    for address, secret, status in (("10.0.0.1", "x", 401), ("10.0.0.1", "x", 429), ("10.0.0.2", None, 200)):
        transport = httpx.ASGITransport(app, client=(address, 1))
        chosen = credential if secret is None else Credential(credential.client_id, SecretStr(secret))
        async with httpx.AsyncClient(transport=transport, base_url=authority.issuer) as http:
            assert (await ask(http, chosen, audience="delays")).status_code == status


async def test_credentials_count_as_basic_authentication_alone_and_in_one_spelling(
    http: httpx.AsyncClient, credential: Credential
) -> None:
    encoded = base64.b64encode(":".join(map(quote_plus, basic(credential))).encode()).decode()
    for authorization, status in (
        (f"Basic {encoded}", 200),
        (f"Bearer {encoded}", 401),
        (f"Basic {encoded[:4]}!{encoded[4:]}", 401),
        (f"Basic {encoded[:4]} {encoded[4:]}", 401),
    ):
        answer = await http.post(
            "/token", data={**FORM, "audience": "delays"}, headers={"authorization": authorization}
        )
        assert answer.status_code == status, authorization


def test_what_is_remembered_of_guessers_is_bounded(authority: DevelopmentAuthority) -> None:
    attempts = _Attempts(authority, 1, 60.0)
    for number in range(10_100):
        attempts.failed((f"client-{number}", "10.0.0.1"))
    assert len(attempts._failures) == 10_000
    with pytest.raises(_Refused):
        attempts.check(("client-10099", "10.0.0.1"))


async def test_keys_and_metadata_are_published(authority: DevelopmentAuthority, http: httpx.AsyncClient) -> None:
    metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
    assert metadata["issuer"] == authority.issuer
    assert metadata["token_endpoint_auth_methods_supported"] == ["client_secret_basic"]
    keys = (await http.get(metadata["jwks_uri"])).json()
    assert keys == authority.jwks()
    for algorithm in ("ES256", "RS256"):
        authority.rotate(algorithm)  # type: ignore[arg-type]
    for jwk in authority.jwks()["keys"]:
        assert set(jwk) <= {"kty", "crv", "x", "y", "n", "e", "kid", "alg", "use"}
    token = authority.issue(project="skyline", service="departures", audience="delays")
    assert json.loads(jws.verify(token, authority.jwks()["keys"][-1]))["aud"] == "delays"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/token", 405), ("POST", "/jwks.json", 405), ("GET", "/", 404)]
)
async def test_other_requests_are_refused(method: str, path: str, status: int, http: httpx.AsyncClient) -> None:
    assert (await http.request(method, path)).status_code == status


async def test_new_registration_ends_the_old_secret(
    authority: DevelopmentAuthority, http: httpx.AsyncClient, credential: Credential
) -> None:
    fresh = authority.register("skyline", "departures", audiences=["delays"])
    assert (await ask(http, credential, audience="delays")).status_code == 401
    assert (await ask(http, fresh, audience="delays")).status_code == 200
    authority.deregister(fresh)
    assert (await ask(http, fresh, audience="delays")).status_code == 401


def test_grant_stays_within_the_registration(authority: DevelopmentAuthority, credential: Credential) -> None:
    client = authority.authenticate(*basic(credential))
    with pytest.raises(PermissionDenied):
        authority.grant(client, audience="tower")
    with pytest.raises(PermissionDenied):
        authority.grant(client, audience="delays", scopes=["admin"])


def test_secrets_show_nowhere(authority: DevelopmentAuthority, credential: Credential) -> None:
    secret = credential.secret.get_secret_value()
    assert len(secret) >= 43
    client = authority.authenticate(*basic(credential))
    assert secret not in repr(credential) + str(credential) + repr(client) + repr(authority.__dict__)
    with pytest.raises(Unauthenticated) as caught:
        authority.authenticate(credential.client_id, secret + "x")
    assert secret not in str(caught.value) + repr(caught.value)
    with pytest.raises(Unauthenticated):
        authority.authenticate(credential.client_id, "\ud800")


@pytest.mark.parametrize("environment", ["prod", "PROD", "production"])
def test_production_needs_a_longer_word(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="KMP_ENVIRONMENT"):
        DevelopmentAuthority(environment=environment)
    monkeypatch.setenv("KMP_ENVIRONMENT", environment)
    with pytest.raises(ConfigurationError, match="KMP_ENVIRONMENT"):
        DevelopmentAuthority()
    assert DevelopmentAuthority(even_in_production_with_keys_in_memory=True).jwks()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"issuer": "auth.example"}, "issuer"),
        ({"issuer": "https://auth.example/path"}, "issuer"),
        ({"issuer": "https://user:pass@auth.example"}, "issuer"),
        ({"ttl": "2d"}, "ttl"),
        ({"ttl": 0}, "ttl"),
        ({"trust_domain": "Acme Inc"}, "SPIFFE ID"),
        ({"algorithm": "HS256"}, "algorithm"),
    ],
)
def test_authority_that_makes_no_sense_is_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DevelopmentAuthority(**wrong)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"project": "Sky"}, "project"),
        ({"service": "a.b"}, "service"),
        ({"audiences": "delays"}, "audiences"),
        ({"audiences": [""]}, "audience"),
        ({"audiences": ["a\nb"]}, "audience"),
        ({"scopes": ["a b"]}, "scope"),
        ({"scopes": ['a"b']}, "scope"),
    ],
)
def test_registration_that_makes_no_sense_is_refused(
    wrong: dict[str, Any], field: str, authority: DevelopmentAuthority
) -> None:
    arguments = {"project": "skyline", "service": "departures", **wrong}
    with pytest.raises(InvalidInput) as caught:
        authority.register(arguments.pop("project"), arguments.pop("service"), **arguments)
    assert caught.value.field == field


def test_key_that_signs_is_not_withdrawn(authority: DevelopmentAuthority) -> None:
    first = authority.jwks()["keys"][0]["kid"]
    with pytest.raises(InvalidInput):
        authority.withdraw(first)
    with pytest.raises(InvalidInput):
        authority.withdraw("unknown")
    authority.rotate()
    authority.withdraw(first)
    assert first not in json.dumps(authority.jwks())
