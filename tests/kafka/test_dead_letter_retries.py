"""Retries of dead letters on a real Kafka: each once, also when the command is killed with -9 or run twice at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections import Counter

import pytest
from cluster import MAIN, ROOT, headrace

from streams.broker import Broker
from streams.codec import decode_transactions
from streams.dead_letter_retry import read_marks
from streams.dead_letters import RETRY_OF, read_letters, read_now
from streams.log import Log, OutBatch, connect
from streams.stage import dead_letters
from streams.topics import TRANSACTIONS, all_topics

pytestmark = pytest.mark.kafka

#: `headrace`, whose process kills itself around a step of its transaction; what it had sent until then is in the log
KILLED = """
import os, signal, sys
from streams.kafka_producer import KafkaProducer, KafkaTransactionalProducer
name, when = sys.argv.pop(1), sys.argv.pop(1)
real = getattr(KafkaTransactionalProducer, name)
def step(self, *words):
    if when == "before":
        KafkaProducer.flush(self, 10)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *words)
    KafkaProducer.flush(self, 10)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(KafkaTransactionalProducer, name, step)
from streams.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def log(kafka: Broker) -> Log:
    made = connect(f"headrace://{kafka.bootstrap}")
    made.admin().create_topics(all_topics())
    return made


def make_letters(log: Log, n: int) -> dict[bytes, str]:
    """Value -> source of so many new dead letters, as the card stage makes them."""
    producer = log.producer()
    values: list[bytes] = [f"torn {uuid.uuid4().hex}".encode() for _ in range(n)]
    keys: list[bytes] = [b"%d" % i for i in range(n)]
    headers = [[("trace", value[:9])] for value in values]
    assert producer.send(OutBatch(TRANSACTIONS, values, keys, None, headers)) == n
    assert producer.flush(30) == 0
    wanted = set(values)
    for batch in read_now(log, TRANSACTIONS):
        _, dead = decode_transactions(batch)
        dead = [one for one in dead if batch.values[one.index] in wanted]
        if dead:
            producer.send(dead_letters(batch, dead, "card"))
    assert producer.flush(30) == 0
    producer.close()
    letters = {letter.value: letter.name for letter in read_letters(log) if letter.value in wanted}
    assert len(letters) == n
    return {value: letters[value] for value in values}


def times_sent(log: Log, letters: dict[bytes, str]) -> Counter[bytes]:
    """How often each letter was sent again, as readers of committed records see it, wholly as it was."""
    times: Counter[bytes] = Counter()
    for batch in read_now(log, TRANSACTIONS):
        for i, value in enumerate(batch.values):
            headers = batch.headers(i)
            if value in letters and (RETRY_OF, letters[value].encode()) in headers:
                assert headers[0] == ("trace", value[:9]) and len(headers) == 2
                assert letters[value].startswith(f"{TRANSACTIONS}/{batch.tp.partition}/")
                times[value] += 1
    return times


@pytest.mark.parametrize(
    ("step", "when", "sent"),
    [("send", "before", 0), ("send", "after", 0), ("commit", "before", 0), ("commit", "after", 20)],
)
def test_a_retry_that_is_killed_is_made_up_for(kafka: Broker, log: Log, step: str, when: str, sent: int) -> None:
    letters = make_letters(log, 20)
    words = ["dead-letters", "retry", *letters.values(), "--bootstrap", kafka.bootstrap]
    killed = subprocess.run([sys.executable, "-c", KILLED, step, when, *words], cwd=ROOT, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL

    again = headrace(*words, "--json")
    assert again.returncode == 0, again.stderr
    figures = json.loads(again.stdout.splitlines()[-1])
    assert (figures["sent"], figures["already"]) == (20 - sent, sent)
    assert times_sent(log, letters) == dict.fromkeys(letters, 1)
    assert set(letters.values()) <= {key.split()[0] for key in read_marks(log)}

    third = headrace(*words, "--json")
    assert json.loads(third.stdout.splitlines()[-1])["sent"] == 0
    assert times_sent(log, letters) == dict.fromkeys(letters, 1)


def test_two_retries_at_once_send_each_letter_once(kafka: Broker, log: Log) -> None:
    letters = make_letters(log, 3_000)
    words = ["dead-letters", "retry", "--all", "--error", "torn", "--json", "--bootstrap", kafka.bootstrap]
    runs = [
        subprocess.Popen([*MAIN, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for run in runs:
        run.communicate(timeout=90)
        assert run.returncode in (0, 1)  # one that began later ends those before
    last = headrace(*words)
    assert last.returncode == 0, last.stderr
    assert times_sent(log, letters) == dict.fromkeys(letters, 1)


def test_a_mended_value_is_sent_in_the_letter_s_place(kafka: Broker, log: Log) -> None:
    [source] = make_letters(log, 1).values()
    mended = b'{"transaction_id": 1, "event_time": 1600000000000, "card_id": 0, "terminal_id": 2, "amount": 3.5}'
    run = subprocess.run(
        [*MAIN, "dead-letters", "retry", source, "--value", "-", "--bootstrap", kafka.bootstrap],
        cwd=ROOT,
        input=mended,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, f"{source}: sent\n".encode())
    found = [
        (batch.keys[i], batch.values[i])
        for batch in read_now(log, TRANSACTIONS)
        for i in range(len(batch))
        if (RETRY_OF, source.encode()) in batch.headers(i)
    ]
    assert found == [(b"0", mended)]
