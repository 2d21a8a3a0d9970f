import ssl

import pytest

from ctseg.errors import PacsAwayError, PacsError, SetupError
from ctseg.pacs.options import Credentials, PacsOptions
from ctseg.pacs.session import PacsRefusedError, PacsSession
from tests.support.canned_pacs import Said, canned_pacs
from tests.support.certificates import Authority, needs_openssl
from tests.support.live_triton import free_port


def asks(url, **options):
    return PacsSession(PacsOptions(url, **options)).json("the search", "/series/1.2.840", {})


def test_a_pacs_that_is_away_for_a_moment_is_asked_again():
    said = iter([Said(503), Said(429), Said(502), Said(body=b"[]")])
    with canned_pacs(lambda asked: next(said)) as (url, asked):
        assert asks(url) == []
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [
        (503, PacsAwayError, "the search: HTTP 503"),
        (500, PacsAwayError, "the search: HTTP 500"),
        (401, PacsRefusedError, "HTTP 401: credentials are needed, or wrong"),
        (404, PacsRefusedError, "HTTP 404: it is not there"),
        (418, PacsRefusedError, "HTTP 418"),
        (302, PacsRefusedError, "HTTP 302: the PACS is at another address"),
    ],
)
def test_every_status_has_a_name_and_no_message_has_a_uid(status, kind, why):
    with (
        canned_pacs(lambda asked: Said(status, headers={"Location": "/elsewhere"})) as (url, asked),
        pytest.raises(kind, match=why) as told,
    ):
        asks(url, patience_s=0.01)
    assert "1.2.840" not in str(told.value)
    assert {one.path for one in asked} == {"/dicom-web/series/1.2.840"}


def test_a_refused_connection_is_not_called_a_timeout():
    with pytest.raises(PacsAwayError, match="Connection refused"):
        asks(f"http://127.0.0.1:{free_port()}", patience_s=0.01)


def test_an_endless_answer_is_ended():
    session = PacsSession(PacsOptions("http://127.0.0.1:1"))
    with canned_pacs(lambda asked: Said(body=b"a" * 1_000_000)) as (url, _):
        session = PacsSession(PacsOptions(url))
        read = lambda response: b"".join(session.chunks(response, "the search", most_bytes=1000))  # noqa: E731
        with pytest.raises(PacsError, match="more than 1000 bytes"):
            session.answer("the search", "GET", "/series", read)


def test_credentials_are_read_anew_for_each_request_and_no_netrc_is(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login nobody password asked\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    file = tmp_path / "credentials"
    with canned_pacs(lambda asked: Said(body=b"[]")) as (url, asked):
        asks(url)
        session = PacsSession(PacsOptions(url, credentials=Credentials(file=write(file, "Bearer first\n"))))
        session.json("the search", "/series", {})
        write(file, "Bearer second")
        session.json("the search", "/series", {})
        monkeypatch.setenv("PACS_LOGIN", "jane:pass:word")
        asks(url, credentials=Credentials(variable="PACS_LOGIN"))
    assert [one.headers.get("Authorization") for one in asked] == [
        None, "Bearer first", "Bearer second", "Basic amFuZTpwYXNzOndvcmQ=",
    ]  # fmt: skip


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["", "Bearer ", "word", ":password", "Bearer a\nb", "us\ter:word"])
def test_credentials_that_are_none_are_named_and_not_shown(tmp_path, text):
    with pytest.raises(SetupError) as told:
        PacsSession(PacsOptions("http://pacs", credentials=Credentials(file=write(tmp_path / "credentials", text))))
    assert str(tmp_path / "credentials") in str(told.value)
    assert "word" not in str(told.value).replace("PASSWORD", "")


@pytest.mark.parametrize("url", ["https://jane:secret@pacs/dicom-web", "https://jane@pacs", "http://a@b@pacs"])
def test_an_address_with_credentials_is_refused_and_not_shown(url):
    with pytest.raises(SetupError, match="holds credentials") as told:
        PacsOptions(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["pacs:8042", "ftp://pacs", "https://", "http://[::1", "http://pacs:99999", "http://p?a=1"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SetupError, match="address of the PACS"):
        PacsOptions(url)


@needs_openssl
def test_only_who_is_trusted_is_talked_to_and_both_sides_show_a_certificate(tmp_path, monkeypatch):
    hospital, stranger = Authority(tmp_path / "a").found(), Authority(tmp_path / "b", "Stranger").found()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*hospital.sign("pacs"))
    tls.load_verify_locations(hospital.root)
    tls.verify_mode = ssl.CERT_REQUIRED
    certificate, key = hospital.sign("client")
    pair = {"client_certificate": certificate, "client_key": key}
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(stranger.root))
    with canned_pacs(lambda asked: Said(body=b"[]"), tls=tls) as (url, _):
        assert asks(url, ca_certificates=hospital.root, **pair) == []
        with pytest.raises(SetupError, match="the certificate is not trusted"):
            asks(url, ca_certificates=stranger.root, **pair)
        with pytest.raises((SetupError, PacsAwayError)):
            asks(url, ca_certificates=hospital.root, patience_s=0.01)
    with pytest.raises(SetupError, match="do not belong together"):
        PacsOptions(url, client_certificate=certificate, client_key=stranger.sign("other")[1])
    with pytest.raises(SetupError, match="only one was given"):
        PacsOptions(url, client_certificate=certificate)
