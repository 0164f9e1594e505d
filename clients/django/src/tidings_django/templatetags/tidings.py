from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import template
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.middleware.csrf import get_token
from django.templatetags.static import static
from django.urls import reverse
from django.utils.html import format_html, json_script
from django.utils.safestring import SafeString, mark_safe

from tidings_django import conf
from tidings_django.identity import user_id
from tidings_django.middleware import COOKIE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpRequest

register = template.Library()

SCRIPTS = ("tidings_django/tidings.min.js", "tidings_django/page.js")


@register.simple_tag(takes_context=True)
def tidings_script(
    context: template.Context, topics: str | Iterable[str] | None = None
) -> SafeString:
    """Opens the stream of the logged-in user; renders nothing for others.

    With `topics`, a name or a list of them, the stream has only these of the user's topics.

    The page gets each notification as an event: `document.addEventListener("tidings:notification",
    ({ detail }) => …)`, where `detail` has `id`, `event`, `topic`, `text` and `data`.
    """
    request: HttpRequest | None = context.get("request")
    if request is None:
        raise ImproperlyConfigured(
            "{% tidings_script %} needs the request: render the template with it, and enable the "
            "context processor django.template.context_processors.request."
        )
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return mark_safe("")

    uses_tickets = conf.uses_tickets(request)
    if not uses_tickets:
        setattr(request, COOKIE, "set")
    options = {
        "stream": conf.stream_url(request),
        "user": user_id(user),
        "tickets": uses_tickets,
        "renew": reverse(f"tidings_django:{'ticket' if uses_tickets else 'cookie'}"),
        # The cookie is newer if the user logged in again in another tab, but scripts can't read it
        # if it is HttpOnly or kept in the session.
        "csrf": {
            "cookie": settings.CSRF_COOKIE_NAME,
            "header": settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-"),
            "token": get_token(request),
        },
    }
    if topics is not None:
        options["topics"] = _names(topics)
    nonce = _nonce(context, request)
    scripts = [format_html('<script defer src="{}"{}></script>', static(p), nonce) for p in SCRIPTS]
    return mark_safe("\n".join([json_script(options, "tidings-options"), *scripts]))  # noqa: S308


def _names(topics: str | Iterable[str]) -> list[str]:
    names = [topics] if isinstance(topics, str) else list(topics)
    # A variable that doesn't exist is an empty string in a template.
    if not names or not all(names):
        raise ValueError(
            "{% tidings_script %}: topics is empty. Without it, the stream has all of the user's."
        )
    return names


def _nonce(context: template.Context, request: HttpRequest) -> SafeString:
    """The attribute for a Content-Security-Policy with nonces.

    The context has it with Django's own middleware (6.0), the request with django-csp. Both make it
    when it is first converted to a string, and are false until then.
    """
    nonce: Any = context.get("csp_nonce", getattr(request, "csp_nonce", None))
    return mark_safe("") if nonce is None else format_html(' nonce="{}"', str(nonce))
