"""A Content-Security-Policy with nonces, for every version of Django."""

from __future__ import annotations

import secrets

from django.conf import settings


def policy_middleware(get_response):
    def middleware(request):
        request.csp_nonce = secrets.token_urlsafe()
        response = get_response(request)
        # The example's own script is allowed by its path, so Tidings' scripts need the nonce.
        response["Content-Security-Policy"] = (
            "default-src 'self'; "
            f"script-src 'nonce-{request.csp_nonce}' http://127.0.0.1:*/static/bell/; "
            f"connect-src 'self' http://127.0.0.1:{settings.TIDINGS_DEV_PORT}"
        )
        return response

    return middleware
