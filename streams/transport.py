"""The Faust transport whose messages are runs of batches of records: an entry point in ``faust.transports``.

Faust is told one assignment, once: all partitions of the subscribed topics, with a constant generation. What
really is assigned, and all of subscribe, assign, revoke, seek and commit, is `streams.reader`'s business: Faust's
own rebalance stops every partition, clears its queues and seeks back while the state is ahead. What Faust sees
is one message per run of batches of a topic, as one poll brought them; its offset is a counter, Kafka's offsets are
inside the batches. Acks are off.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

import faust
from faust.agents import Agent
from faust.tables import TableManager
from faust.transport import base
from faust.types import ConsumerMessage
from faust.types.tuples import TP as FaustTP  # noqa: N811 - it is a class

from streams.log import RecordBatch

__all__ = ["BlockApp", "NoTables", "Transport"]


class BlockApp(faust.App):
    """A Faust app that is fed by a `streams.reader.BlockReader`.

    ``on_subscribed`` is called once with the topics of all agents and returns how many partitions each has;
    from then on whoever was called may `Consumer.deliver` batches.
    """

    on_subscribed: Callable[[BlockConsumer, list[str]], Awaitable[Mapping[str, int]]]

    def feed(self, topic: str, name: str, handler: Callable[[faust.StreamT[Any]], Awaitable[None]]) -> None:
        """An agent, as `agent` makes it, for a topic's batches. Left out is Venusian's mark for autodiscovery: to place
        it, all modules are searched for the handler's, which is a tenth of the time in which a worker starts."""
        channel = self.topic(topic, schema=BlockSchema(), acks=False)
        agent = Agent(
            handler, name=name, app=self, channel=channel, on_error=self._on_agent_error, use_reply_headers=True
        )
        self.agents[agent.name] = agent
        self.topics.beacon.add(agent)

    def _create_directories(self) -> None:
        """Nothing: Faust makes a data directory for its tables, which are not used."""


class NoTables(TableManager):
    """Faust's tables, of which there are none: it would wait a second at each start for them to be declared."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class BlockSchema(faust.Schema[Any, Any]):
    """Hands an agent the batches themselves as the event's value: a list, at most one batch per partition."""

    def compile(self, app: Any, **kwargs: Any) -> Callable[..., Awaitable[Any]]:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, message.headers, message)

        return decode


class BlockConsumer(base.Consumer):
    """Faust's view of the reader: runs of batches that were delivered, in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: deque[list[RecordBatch]] = deque()
        self._arrived = asyncio.Event()
        self._everything: set[FaustTP] = set()
        self._counter = itertools.count(1)

    def deliver(self, runs: Iterable[list[RecordBatch]]) -> None:
        """Queues runs for the agents, each of batches of one topic. On the event loop's thread."""
        self._waiting.extend(runs)
        self._arrived.set()

    async def subscribe(self, topics: Iterable[str]) -> None:
        if self._everything:
            raise RuntimeError("the agents' topics are fixed once the app has started; declare all agents before")
        app = cast(BlockApp, self.app)
        partitions = await app.on_subscribed(self, sorted(topics))
        self._everything = {FaustTP(t, p) for t, n in partitions.items() for p in range(n)}
        # not awaited here: the assignment waits for this very subscription to be done
        self.add_future(self._announce())

    async def _announce(self) -> None:
        self.app.on_rebalance_start()
        await self.on_partitions_assigned(set(self._everything), self.app.consumer_generation_id)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Mapping[FaustTP, list[Any]]:
        if not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return {}
        records: dict[FaustTP, list[Any]] = {}
        while self._waiting:
            run = self._waiting.popleft()
            # one partition for all of a topic: Faust gives partitions turns, and a run must not overtake another
            records.setdefault(FaustTP(run[0].tp.topic, 0), []).append(run)
        return records

    def _to_message(self, tp: FaustTP, record: list[RecordBatch]) -> ConsumerMessage:
        return ConsumerMessage(
            topic=tp.topic,
            partition=tp.partition,
            offset=next(self._counter),
            timestamp=record[0].timestamps[0] / 1000 if record[0].timestamps else time.time(),
            timestamp_type=0,
            headers={},
            key=None,
            value=cast(Any, record),
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def assignment(self) -> set[FaustTP]:
        return set(self._everything)

    def highwater(self, tp: FaustTP) -> int:
        return 0

    def topic_partitions(self, topic: str) -> int | None:
        return sum(tp.topic == topic for tp in self._everything) or None

    # The reader positions and commits: nothing of Faust's own bookkeeping moves the log.

    async def seek_to_committed(self) -> Mapping[FaustTP, int]:
        return {}

    async def _commit(self, offsets: Mapping[FaustTP, int]) -> bool:
        return True

    async def _seek(self, partition: FaustTP, offset: int) -> None:
        raise RuntimeError(f"seek {partition} to {offset}: the reader owns the positions of this transport")

    async def seek_wait(self, partitions: Mapping[FaustTP, int]) -> None:
        raise RuntimeError("seek: the reader owns the positions of this transport")

    async def position(self, tp: FaustTP) -> int | None:
        return None

    async def earliest_offsets(self, *partitions: FaustTP) -> Mapping[FaustTP, int]:
        return dict.fromkeys(partitions, 0)

    async def highwaters(self, *partitions: FaustTP) -> Mapping[FaustTP, int]:
        return dict.fromkeys(partitions, 0)

    def _new_topicpartition(self, topic: str, partition: int) -> FaustTP:
        return FaustTP(topic, partition)

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"topic {topic}: topics are created by `headrace topics create`, not by Faust")

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition


class BlockProducer(base.Producer):
    """Faust's own producer is not used: outputs go through `streams.log.LogProducer`, a block at a time."""

    def supports_headers(self) -> bool:
        return True


class Transport(base.Transport):
    """``headrace://HOST:PORT`` (Kafka) and ``memory://NAME`` (this process) as Faust broker URLs."""

    Consumer = BlockConsumer
    Producer = BlockProducer
    driver_version = "headrace"
