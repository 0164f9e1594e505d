"""The application, and the thread that brings it the rows.

`send_event` must be called in the process that serves, says the README, unless there is Redis to
reach others by; one process is what it sets up, so the thread is in it.
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

    # Where Postgres is, the usual variables say.
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


# At its end Python takes away the ground that the thread stands on, and it crashes.
atexit.register(os._exit, 0)

_listening = threading.Event()
threading.Thread(target=forward_or_end, args=(_listening,), daemon=True).start()
_listening.wait()
