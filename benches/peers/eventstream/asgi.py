"""The application, and the thread that passes rows to it.

According to the README, `send_event` must be called in the serving process unless Redis connects
it to others. The README sets up a single process, so the thread runs in that process.
"""

import atexit
import json
import os
import threading
import traceback

import psycopg
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_asgi_application()


def forward(listening: threading.Event) -> None:
    from django_eventstream import send_event

    # The usual environment variables say where Postgres is.
    with psycopg.connect("", autocommit=True) as connection:
        connection.execute("listen notifications")
        listening.set()
        for notification in connection.notifies():
            row = json.loads(notification.payload)
            send_event(f"user-{row['user_id']}", "message", row["text"], json_encode=False)


def forward_or_end(listening: threading.Event) -> None:
    try:
        forward(listening)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


# At exit, Python frees resources that the thread still uses, and the process crashes.
atexit.register(os._exit, 0)

_listening = threading.Event()
threading.Thread(target=forward_or_end, args=(_listening,), daemon=True).start()
_listening.wait()
