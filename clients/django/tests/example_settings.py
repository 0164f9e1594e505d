"""The example's settings, with a Content-Security-Policy."""

from project.settings import *  # noqa: F403
from project.settings import MIDDLEWARE

MIDDLEWARE.append("tests.csp.policy_middleware")
