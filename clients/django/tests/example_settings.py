"""The example's settings, with free ports and, if Django has it, a Content-Security-Policy."""

import os

import django
from project.settings import *  # noqa: F403
from project.settings import MIDDLEWARE, TEMPLATES

TIDINGS_DEV_PORT = int(os.environ["DEV_PORT"])

if django.VERSION >= (6,):
    from django.utils.csp import CSP

    MIDDLEWARE.append("django.middleware.csp.ContentSecurityPolicyMiddleware")
    TEMPLATES[0]["OPTIONS"]["context_processors"].append("django.template.context_processors.csp")
    # The page's own script is allowed by its path, so Tidings' scripts need the nonce.
    SECURE_CSP = {
        "default-src": [CSP.SELF],
        "script-src": [CSP.NONCE, "http://127.0.0.1:*/static/bell/"],
        "connect-src": [CSP.SELF, f"http://127.0.0.1:{TIDINGS_DEV_PORT}"],
    }
