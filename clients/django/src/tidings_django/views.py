from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST

from . import tokens
from .sending import create_stream_ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .identity import User


def _for_users(view: Callable[[User], HttpResponse]) -> Callable[..., HttpResponseBase]:
    """A POST of a logged-in user; 401 tells scripts that the user has to log in.

    `login_required` would redirect them to a page, and 403 is Django's status for CSRF failures.
    """

    @never_cache
    @require_POST
    @csrf_protect
    def wrapper(request: HttpRequest) -> HttpResponse:
        user = request.user
        return view(user) if user.is_authenticated else HttpResponse(status=401)

    return wrapper


@_for_users
def stream_cookie(user: User) -> HttpResponse:
    """Sets a new cookie, for pages that stay open longer than a token is valid."""
    response = HttpResponse(status=204)
    tokens.set_cookie(response, user)
    return response


@_for_users
def stream_ticket(user: User) -> HttpResponse:
    """Creates a ticket, for pages whose stream is on another host, which doesn't get the cookie."""
    return JsonResponse({"ticket": create_stream_ticket(user)})
