"""Opens the streams listed on standard input, with the client named by the first argument, as its
README and docs/clients.md recommend, and prints each event as a line of JSON."""

import asyncio
import datetime
import json
import os
import sys
import threading
import time
import traceback
import urllib.request

PAUSE = 0.05
"""The pause between two connections, if the library has no delay of its own."""

lock = threading.Lock()


def emit(line):
    text = json.dumps(line) + "\n"
    with lock:
        sys.stdout.write(text)
        sys.stdout.flush()


class Stream:
    """The token to send, and the id to reconnect with."""

    def __init__(self, n, url, token_url):
        self.n = n
        # In JSON no notification is empty or begins with a space.
        self.url = url + "?format=json"
        self.token_url = token_url
        self.token = None
        self.last = ""

    def headers(self):
        if self.token is None:
            with urllib.request.urlopen(self.token_url) as answer:
                self.token = json.load(answer)["token"]
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"}
        if self.last:
            headers["Last-Event-ID"] = self.last
        return headers

    def refused(self, status):
        """Reacts to a status other than 200: gets a new token, or waits."""
        if status == 401:
            self.token = None

    def event(self, name, id, data):
        if id:
            self.last = id
        # Some treat a block without data as an event.
        if data:
            emit({"n": self.n, "event": name or "message", "id": id, "data": data})
        if name == "tidings.expiring":
            self.token = None

    def gave_up(self, error):
        emit({"n": self.n, "gave_up": type(error).__name__ + " " + str(error)[:80]})


async def httpx_sse(stream):
    import httpx
    from httpx_sse import aconnect_sse

    async with httpx.AsyncClient(timeout=None) as client:
        while True:
            try:
                async with aconnect_sse(client, "GET", stream.url, headers=stream.headers()) as source:
                    if source.response.status_code != 200:
                        stream.refused(source.response.status_code)
                    else:
                        async for event in source.aiter_sse():
                            stream.event(event.event, event.id, event.data)
            except httpx.TransportError:
                pass
            await asyncio.sleep(PAUSE)


def sseclient_py(stream):
    import requests
    import sseclient

    while True:
        try:
            with requests.get(stream.url, stream=True, headers=stream.headers()) as response:
                if response.status_code != 200:
                    stream.refused(response.status_code)
                else:
                    for event in sseclient.SSEClient(response).events():
                        stream.event(event.event, event.id, event.data)
        except requests.RequestException:
            pass
        time.sleep(PAUSE)


def requests_sse(stream):
    import requests
    from requests_sse import EventSource, InvalidStatusCodeError

    while True:
        headers = stream.headers()
        last = headers.pop("Last-Event-ID", None)
        try:
            with EventSource(
                stream.url,
                headers=headers,
                latest_event_id=last,
                reconnection_time=datetime.timedelta(seconds=PAUSE),
            ) as source:
                for event in source:
                    stream.event(event.type, event.last_event_id, event.data)
                    if event.type == "tidings.expiring":
                        break
        except InvalidStatusCodeError as error:
            stream.gave_up(error)
            stream.refused(error.status_code)
        except requests.RequestException as error:
            stream.gave_up(error)
        time.sleep(PAUSE)


async def aiohttp_sse_client2(stream):
    import aiohttp
    from aiohttp_sse_client2.client import EventSource

    # A line may have up to twice this length.
    async with aiohttp.ClientSession(
        read_bufsize=8 << 20, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        while True:
            try:
                async with EventSource(
                    stream.url,
                    session=session,
                    headers=stream.headers(),
                    reconnection_time=datetime.timedelta(seconds=PAUSE),
                ) as source:
                    async for event in source:
                        stream.event(event.type, event.last_event_id, event.data)
                        if event.type == "tidings.expiring":
                            break
            except ConnectionRefusedError as error:
                stream.gave_up(error)
                stream.refused(401)
            except (aiohttp.ClientError, OSError) as error:
                stream.gave_up(error)
            await asyncio.sleep(PAUSE)


def guarded(open, stream):
    try:
        open(stream)
    except BaseException:
        emit({"n": stream.n, "error": traceback.format_exc()})


async def guarded_task(open, stream):
    try:
        await open(stream)
    except BaseException:
        emit({"n": stream.n, "error": traceback.format_exc()})


async def run_tasks(open, streams):
    await asyncio.gather(*(guarded_task(open, stream) for stream in streams))


def main():
    open = globals()[sys.argv[1].replace("-", "_")]
    streams = [Stream(**stream) for stream in json.loads(sys.stdin.readline())]
    if asyncio.iscoroutinefunction(open):
        run = lambda: asyncio.run(run_tasks(open, streams))
        threading.Thread(target=run, daemon=True).start()
    else:
        for stream in streams:
            threading.Thread(target=guarded, args=(open, stream), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


main()
