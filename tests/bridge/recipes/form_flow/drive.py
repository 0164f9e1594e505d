"""Serves the project, and does what it is told, a line at a time."""

import os
import sys
from importlib.metadata import version
from threading import Thread

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

from django.conf import settings
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from people.models import User

call_command("makemigrations", "people", "shop", verbosity=0)
call_command("migrate", verbosity=0)


def serve(user):
    """Registers a user, whose password is the name, and starts a server. Returns its port."""
    User.objects.create_user(user, password=user)
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(get_wsgi_application())
    Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def stream(url, closes):
    """Where the pages open their stream, and whether they close it when they are left."""
    settings.STREAM = url
    settings.CLOSES = closes == "true"
    return url


commands = {"serve": serve, "stream": stream}

print(f"Django {version('Django')}", flush=True)
for line in sys.stdin:
    command, *words = line.rstrip("\n").split(" ")
    print(commands[command](*words), flush=True)
