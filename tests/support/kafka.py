"""A real Kafka broker, for tests: one node that is its own controller (KRaft), on free ports, with a folder of its own.

It needs Java 17 and, once, Maven, which brings its jars into the folder of this Python's environment.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]  # it has no types
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from tests.support.gateway import free_port

JARS = Path(sys.prefix, "kafka-3.9.1")
POM = Path(__file__).with_name("kafka.pom.xml")
READY_WITHIN = 180.0  # seconds; for machines that are busy with much else
USER, PASSWORD = "relay", "a password of the tests"
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
log.dirs={folder}/data
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
auto.create.topics.enable=false
log.cleaner.enable=false
"""
_LOG = """
log4j.rootLogger=WARN, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
log4j.appender.stdout.layout.ConversionPattern=%d %p %m (%c)%n
"""


def missing() -> str | None:
    """Why there can be no broker here; None where there can."""
    if shutil.which("java") is None:
        return "a Kafka broker needs Java 17: install Debian's package openjdk-17-jre-headless"
    if not JARS.exists() and shutil.which("mvn") is None:
        return "Kafka's jars come by Maven: install Debian's package maven, then run python -m tests.support.kafka"
    return None


def bring() -> None:
    """Have the jars, from Maven Central or from where Maven keeps what it had before."""
    if not JARS.exists():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}/jars"]
            subprocess.run(["mvn", "-q", "-B", "-f", str(POM), *goal], check=True, timeout=600)
            os.rename(f"{folder}/jars", JARS)  # whole or not at all


class KafkaBroker:
    """One broker. Restarts keep its ports and its data, also after it was killed."""

    def __init__(self) -> None:
        bring()
        self.port, self.sasl_port, controller = free_port(), free_port(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ringcast-kafka-"))
        (self.folder / "log4j.properties").write_text(_LOG)
        (self.folder / "server.properties").write_text(_PROPERTIES.format(
            port=self.port, sasl=self.sasl_port, controller=controller, folder=self.folder, user=USER, password=PASSWORD
        ))  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        properties = str(self.folder / "server.properties")
        formatted = subprocess.run(
            [*self._java(), "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", properties],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if formatted.returncode != 0:
            raise RuntimeError(f"the storage was not formatted:\n{formatted.stdout}")

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        with (self.folder / "log").open("ab") as log:
            command = [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_WITHIN
        while not asyncio.run(self._answers()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka did not start:\n{(self.folder / 'log').read_text()[-5000:]}")
            time.sleep(0.1)
        return self

    async def make(self, topic: str, partitions: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, partitions, 1)])
        finally:
            await admin.close()

    def kill(self) -> None:
        """As the kernel's OOM killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Killed, and there again with its data."""
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _java(self) -> list[str]:
        """Quick to start, slow to get fast, and small."""
        return [
            "java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
            f"-Dlog4j.configuration=file:{self.folder}/log4j.properties", "-cp", f"{JARS}/*",
        ]  # fmt: skip

    async def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, request_timeout_ms=2000)
        try:
            await admin.start()
            # Not named by itself yet, it answers already: nobody could find a coordinator then.
            return bool((await admin.describe_cluster())["brokers"])
        except KafkaError:
            return False
        finally:
            await admin.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()


if __name__ == "__main__":
    bring()
