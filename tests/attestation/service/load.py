"""An open-loop load generator, in a process of its own: requests leave when they are due, whatever came back."""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

CONNECTIONS = 128
AUTH = json.dumps({"version": "0.4.0", "tee": "snp", "extra-params": ""}).encode()


@dataclass(kw_only=True)
class Load:
    """What to send where; `cookies` are those of attested sessions."""

    host: str
    port: int
    path: str
    cookies: list[str]

    def __post_init__(self) -> None:
        self._sent = 0
        self.results: list[tuple[int, float]] = []

    def request(self) -> bytes:
        """One new handshake for every three keys."""
        self._sent += 1
        if self._sent % 4 == 0:
            return b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(AUTH), AUTH)
        cookie = self.cookies[self._sent % len(self.cookies)]
        return f"GET /kbs/v0/{self.path} HTTP/1.1\r\nhost: x\r\ncookie: kbs-session-id={cookie}\r\n\r\n".encode()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its whole answer."""
        started = time.perf_counter()
        writer.write(self.request())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self.results.append((int(head[9:12]), time.perf_counter() - started))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def closed(self, seconds: float, clients: int) -> float:
        """Requests a second with so many clients that send as soon as they may."""
        until, before = time.perf_counter() + seconds, len(self.results)

        async def client() -> None:
            reader, writer = await self.connect()
            while time.perf_counter() < until:
                await self.exchange(reader, writer)
            writer.close()

        await asyncio.gather(*(client() for _ in range(clients)))
        return (len(self.results) - before) / seconds

    async def opened(self, rate: float, seconds: float) -> None:
        """`rate` a second for so long, over as many connections as are free when a request is due."""
        idle = [await self.connect() for _ in range(CONNECTIONS)]
        running: set[asyncio.Task[None]] = set()

        async def one() -> None:
            wire = idle.pop()
            await self.exchange(*wire)
            idle.append(wire)

        started, sent = time.perf_counter(), 0
        while (now := time.perf_counter() - started) < seconds:
            due = int(now * rate) - sent
            for _ in range(min(due, len(idle))):
                task = asyncio.create_task(one())
                running.add(task)
                task.add_done_callback(running.discard)
                await asyncio.sleep(0)
            sent += due
            await asyncio.sleep(0.001)
        await asyncio.gather(*running)
        for _, writer in idle:
            writer.close()


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


async def run(load: Load, times: float, seconds: float, warm: float) -> dict[str, object]:
    """Unloaded, capacity, overload; only what comes after `warm` seconds of overload counts."""
    await load.closed(0.5, 1)
    load.results.clear()
    await load.closed(1.5, 1)
    unloaded = [took for status, took in load.results if status == 200]
    capacity = await load.closed(1.5, 4)
    await load.opened(times * capacity, warm)
    load.results.clear()
    await load.opened(times * capacity, seconds)
    statuses: dict[int, int] = {}
    for status, _ in load.results:
        statuses[status] = statuses.get(status, 0) + 1
    accepted = [took for status, took in load.results if status == 200]
    return {
        "capacity": capacity, "statuses": statuses, "unloaded_p50": percentile(unloaded, 0.5),
        "unloaded_p99": percentile(unloaded, 0.99), "accepted_p50": percentile(accepted, 0.5),
        "accepted_p99": percentile(accepted, 0.99), "accepted": len(accepted) / seconds,
    }  # fmt: skip


def main(file: Path) -> None:
    """Orders in a JSON file; the result on stdout."""
    order = json.loads(file.read_text())
    parts = urlsplit(order["url"])
    load = Load(host=parts.hostname or "", port=parts.port or 0, path=order["path"], cookies=order["cookies"])
    print(json.dumps(asyncio.run(run(load, order["times"], order["seconds"], order["warm"]))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
