"""The example's settings, with free ports and a Content-Security-Policy."""

import os

from project.settings import *  # noqa: F403
from project.settings import MIDDLEWARE

TIDINGS_DEV_PORT = int(os.environ["DEV_PORT"])
MIDDLEWARE.append("tests.csp.policy_middleware")
