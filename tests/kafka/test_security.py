"""TLS, SCRAM and client certificates against a real Kafka that asks for them; no secret in anything that is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from certificates import Authority
from cluster import Worker, fresh_topics, headrace, lines, stream
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from streams.broker import Broker, free_port, kafka_available
from streams.config import load_settings
from streams.errors import ConfigError
from streams.log import connect
from streams.topics import DEAD_LETTERS, FRAUD_SCORES, TRANSACTIONS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 500
USER, PASSWORD, WRONG_PASSWORD = "headrace-worker", "scram-Secret-4711", "scram-Wrong-0815"
KEY_PASSWORD, KEY_VARIABLE = "key-Secret-2342", "HEADRACE_TEST_KEY_PASSWORD"
SECRETS = (PASSWORD, WRONG_PASSWORD, KEY_PASSWORD)
SASL = 'security.protocol = "SASL_SSL"\n'
DEBUG = 'log_level = "DEBUG"\ncommit_interval_ms = 100\n[kafka]\ndebug = "conf,security"\n'


@dataclass(frozen=True)
class Secured:
    """A broker with one listener for each kind of client, and what its clients need."""

    broker: Broker
    scram: str
    mutual: str
    folder: Path

    def by_password(self, password: str, ca: str = "ours") -> str:
        """headrace.toml of a client with a user name and a password."""
        return DEBUG + (
            f'security.protocol = "SASL_SSL"\nssl.ca.location = "{self.folder / ca}-ca.pem"\n'
            f'sasl.mechanism = "SCRAM-SHA-512"\nsasl.username = "{USER}"\nsasl.password = "{password}"\n'
        )

    def by_certificate(self, client: str | None, ca: str = "ours") -> str:
        """headrace.toml of a client with a certificate, or without."""
        config = DEBUG + f'security.protocol = "SSL"\nssl.ca.location = "{self.folder / ca}-ca.pem"\n'
        if client is None:
            return config
        return config + (
            f'ssl.certificate.location = "{self.folder / client}.pem"\n'
            f'ssl.key.location = "{self.folder / client}.key"\n'
            f'ssl.key.password = "${{env:{KEY_VARIABLE}}}"\n'
        )

    def right(self, kind: str) -> tuple[str, str]:
        """(bootstrap, headrace.toml) of a client that is let in."""
        if kind == "scram":
            return self.scram, self.by_password(f"${{file:{self.folder}/password}}")
        return self.mutual, self.by_certificate("client")


def server_settings(folder: Path, plain: int, scram: int, mutual: int) -> dict[str, str]:
    """One PLAINTEXT listener for the broker itself, SASL_SSL with SCRAM, and SSL with client certificates."""
    ours = Authority(folder, "ours")
    key, certificate = ours.issue("server")
    ours.issue("client", KEY_PASSWORD)
    Authority(folder, "foreign").issue("stranger", KEY_PASSWORD)
    (folder / "server-chain.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    (folder / "password").write_text(PASSWORD + "\n")
    listeners = f"PLAINTEXT://127.0.0.1:{plain},SCRAM://127.0.0.1:{scram},MUTUAL://127.0.0.1:{mutual}"
    controller = free_port()
    return {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,MUTUAL:SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.mutual.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server-chain.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ours.certificate),
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if reason := kafka_available():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("secured")
    plain, scram, mutual = free_port(), free_port(), free_port()
    os.environ[KEY_VARIABLE] = KEY_PASSWORD
    with Broker.start(plain, settings=server_settings(folder, plain, scram, mutual)) as broker:
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        created = UserScramCredentialUpsertion(USER, credential, PASSWORD.encode())
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        for future in admin.alter_user_scram_credentials([created]).values():
            future.result()
        yield Secured(broker, f"127.0.0.1:{scram}", f"127.0.0.1:{mutual}", folder)
    del os.environ[KEY_VARIABLE]


def without_secrets(*texts: str) -> None:
    """Fails where one of the texts, which are all that was written, has a secret in it."""
    assert any(texts)
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


@pytest.mark.parametrize("kind", ["scram", "certificate"])
def test_every_command_works_through_tls_and_writes_no_secret(secured: Secured, tmp_path: Path, kind: str) -> None:
    fresh_topics(secured.broker.bootstrap, 2)
    bootstrap, config = secured.right(kind)
    (tmp_path / "headrace.toml").write_text(config)
    events, scores, dead = (tmp_path / name for name in ("events.jsonl", "scores.jsonl", "dead.jsonl"))
    values = [value for _, _, value in stream(N).transactions] + [b"poison"]
    events.write_bytes(b"\n".join(values))
    written: list[str] = []

    def run(*words: str) -> None:
        done = headrace(*words, "--bootstrap", bootstrap, "--config", str(tmp_path / "headrace.toml"))
        written.extend((done.stdout, done.stderr))
        assert done.returncode == 0, done.stderr

    run("topics", "list")
    with Worker(bootstrap, tmp_path, f"secured-{kind}", config=config) as worker:
        worker.wait_ready()
        run("produce", "--topic", TRANSACTIONS, "--from", str(events))
        run("consume", "--topic", FRAUD_SCORES, "--to", str(scores), "--count", str(N), "--envelope")
        run("consume", "--topic", DEAD_LETTERS, "--to", str(dead), "--count", "1", "--envelope")
        figures = worker.stop()
    assert len({record["value"]["transaction_id"] for record in lines(scores)}) == N
    assert (figures["received"], figures["scored"], figures["dead_letters"]) == (N + 1, N, 1)
    assert "DEBUG" in worker.log and "ssl.ca.location" in worker.log, "the clients were told to say all"
    without_secrets(*written, worker.log, orjson.dumps(figures).decode(), scores.read_text(), dead.read_text())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("wrong password", "uthentication"),
        ("server of an unknown CA", "certificate verify failed"),
        ("no certificate", "bad certificate"),
        ("certificate of an unknown CA", "certificate"),
    ],
)
def test_who_is_not_let_in_ends_with_the_reason(secured: Secured, tmp_path: Path, case: str, reason: str) -> None:
    bootstrap, config = {
        "wrong password": (secured.scram, secured.by_password(WRONG_PASSWORD)),
        "server of an unknown CA": (secured.scram, secured.by_password(PASSWORD, ca="foreign")),
        "no certificate": (secured.mutual, secured.by_certificate(None)),
        "certificate of an unknown CA": (secured.mutual, secured.by_certificate("stranger")),
    }[case]
    with Worker(bootstrap, tmp_path, "refused", config=config) as worker:
        assert worker.wait(60) == 1
    said = worker.log.splitlines()[-1]
    assert "kafka-refused" in said and reason in said and bootstrap in said and "credentials" in said
    assert "Traceback" not in worker.log
    (tmp_path / "headrace.toml").write_text(config)
    listed = headrace("topics", "list", "--bootstrap", bootstrap, "--config", str(tmp_path / "headrace.toml"))
    assert listed.returncode == 1 and "kafka-refused" in listed.stderr
    without_secrets(worker.log, listed.stderr)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('sasl.pasword = "{secret}"', "sasl.pasword"),
        ('sasl.password = "{secret}"\nno.such = "1"', "no.such"),
        (SASL + 'sasl.mechanism = "SCRAM-SHA-513"\nsasl.username = "u"\nsasl.password = "{secret}"', "SCRAM-SHA-513"),
        (SASL + 'sasl.mechanism = "SCRAM-SHA-512"\nsasl.password = "{secret}"', "sasl.username"),
        ('security.protocol = "SSL"\nssl.key.pem = "{secret}"', "ssl.key.pem"),
        ('sasl.password = "{secret}', "not TOML"),
        ('sasl.password = "${{env:HEADRACE_TEST_NOT_THERE}}"\nsasl.username = "{secret}"', "HEADRACE_TEST_NOT_THERE"),
        ('sasl.username = "{secret}"\nsasl.password = "${{file:/no/such/file}}"', "/no/such/file"),
    ],
)
def test_a_wrong_setting_is_refused_without_the_secret_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], config: str, said: str
) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text("[kafka]\n" + config.format(secret=PASSWORD))
    with caplog.at_level("DEBUG"), pytest.raises(ConfigError) as refused:
        connect("headrace://127.0.0.1:9", load_settings(path).kafka_config()).admin()
    assert said in str(refused.value)
    without_secrets(str(refused.value), caplog.text, *capfd.readouterr())
