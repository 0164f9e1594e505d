"""A minimal Django project with django-eventstream, set up as in its README, with storage."""

import os

SECRET_KEY = "not a secret: nothing is signed here"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["daphne", "django_eventstream"]
MIDDLEWARE = []
ROOT_URLCONF = "urls"
ASGI_APPLICATION = "asgi.application"
USE_TZ = True
LOGGING_CONFIG = None

# Under ASGI, Django recommends a pool instead of persistent connections.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "OPTIONS": {"pool": {"min_size": 2, "max_size": 10}},
    }
}

EVENTSTREAM_STORAGE_CLASS = "storage.Storage"
