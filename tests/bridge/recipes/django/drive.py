"""Does with the code of the page what it is told, a line at a time."""

import os
import sys
from importlib.metadata import version

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError
from django.test import Client
from shop import orders

call_command("makemigrations", "shop", verbosity=0)
call_command("migrate", verbosity=0)


def order(customer, item):
    try:
        return orders.place_order(customer, item)
    except DatabaseError as error:
        return f"refused: {error}".splitlines()[0]


def visit(path, user):
    """What the view answers to a user who has logged in."""
    client = Client()
    client.force_login(User.objects.get_or_create(username=user)[0])
    response = client.post(path)
    assert response.status_code < 300, response
    return response


def token(user):
    return visit("/stream-cookie", user).cookies["tidings_token"].value


def ticket(user):
    return visit("/stream-ticket", user).json()["ticket"]


def log_out(user):
    cookie = visit("/log-out", user).cookies["tidings_token"]
    assert (cookie.value, cookie["path"]) == ("", "/stream"), cookie


commands = {
    "order": order,
    "announce": lambda customers, text: orders.announce(customers.split(","), text),
    "token": token,
    "ticket": ticket,
    "logout": log_out,
}

names = ["Django", "psycopg", "PyJWT"]
print(", ".join(f"{name} {version(name)}" for name in names), flush=True)
for line in sys.stdin:
    command, *words = line.rstrip("\n").split(" ", 2)
    print(commands[command](*words), flush=True)
