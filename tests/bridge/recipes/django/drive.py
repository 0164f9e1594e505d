"""Does with the code of the page what it is told, a line at a time."""

import os
import sys
from importlib.metadata import version

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import DatabaseError
from django.test import Client
from shop import orders
from teams import groups

call_command("makemigrations", "shop", verbosity=0)
call_command("migrate", verbosity=0)


def user(number):
    return User.objects.get_or_create(pk=number, defaults={"username": number})[0]


def group(number):
    return Group.objects.get_or_create(pk=number, defaults={"name": number})[0]


def order(customer, item):
    try:
        return orders.place_order(user(customer), item)
    except DatabaseError as error:
        return f"refused: {error}".splitlines()[0]


def announce(customers, text):
    return orders.announce([user(name) for name in customers.split(",")], text)


def join(member, number):
    return user(member).groups.add(group(number))


def leave(member, number):
    return user(member).groups.remove(group(number))


def tell(number, text):
    return groups.tell_group(group(number), text)


def visit(path, name):
    """What the view answers to a user who has logged in."""
    client = Client()
    client.force_login(user(name))
    response = client.post(path)
    assert response.status_code < 300, response
    return response


def token(name):
    return visit("/stream-cookie", name).cookies["tidings_token"].value


def ticket(name):
    return visit("/stream-ticket", name).json()["ticket"]


def log_out(name):
    cookie = visit("/log-out", name).cookies["tidings_token"]
    assert (cookie.value, cookie["path"]) == ("", "/stream"), cookie


commands = {
    "order": order,
    "announce": announce,
    "join": join,
    "leave": leave,
    "tell": tell,
    "token": token,
    "ticket": ticket,
    "logout": log_out,
}

names = ["Django", "psycopg", "PyJWT"]
print(", ".join(f"{name} {version(name)}" for name in names), flush=True)
for line in sys.stdin:
    command, *words = line.rstrip("\n").split(" ", 2)
    print(commands[command](*words), flush=True)
