from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST

from . import tokens
from .identity import user_id
from .sending import create_stream_ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .identity import User


def _for_users(view: Callable[[User], HttpResponse]) -> Callable[..., HttpResponseBase]:
    """A POST from a page of the logged-in user; 401 tells its script that this user is logged out.

    `login_required` would redirect it to a page, and 403 is Django's status for CSRF failures. The
    page names its user, because another one may have logged in from another tab.
    """

    @never_cache
    @require_POST
    @csrf_protect
    def wrapper(request: HttpRequest) -> HttpResponse:
        user = request.user
        if user.is_authenticated and request.POST.get("user") == user_id(user):
            return view(user)
        return HttpResponse(status=401)

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
