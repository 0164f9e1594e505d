"""Does with the code of the page what it is told, a line at a time."""

import os
import sys
from importlib.metadata import version

import psycopg
import shop

connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
connection.execute(open("orders.sql").read())


def order(customer_id, item):
    try:
        return shop.place_order(connection, int(customer_id), item)
    except psycopg.Error as error:
        return f"refused: {error.diag.message_primary}"


commands = {
    "order": order,
    "announce": lambda ids, text: shop.announce(connection, list(map(int, ids.split(","))), text),
    "token": lambda id: shop.stream_token(int(id)),
    "ticket": lambda id: shop.stream_ticket(connection, int(id)),
    "logout": lambda id: shop.end_streams(connection, int(id)),
}

print(f"psycopg {version('psycopg')}, PyJWT {version('PyJWT')}", flush=True)
for line in sys.stdin:
    command, *words = line.rstrip("\n").split(" ", 2)
    print(commands[command](*words), flush=True)
