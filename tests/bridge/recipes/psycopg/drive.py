"""Does with the code of the page what it is told, a line at a time."""

import os
import sys
from importlib.metadata import version

import psycopg
import shop

connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


def order(customer, item):
    try:
        return shop.place_order(connection, customer, item)
    except psycopg.Error as error:
        return f"refused: {error.diag.message_primary}"


commands = {
    "order": order,
    "announce": lambda customers, text: shop.announce(connection, customers.split(","), text),
    "token": shop.stream_token,
    "ticket": lambda user: shop.stream_ticket(connection, user),
    "logout": lambda user: shop.end_streams(connection, user),
}

print(f"psycopg {version('psycopg')}, PyJWT {version('PyJWT')}", flush=True)
for line in sys.stdin:
    command, *words = line.rstrip("\n").split(" ", 2)
    print(commands[command](*words), flush=True)
