from __future__ import annotations

from typing import TYPE_CHECKING, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from . import tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

COOKIE = "tidings_cookie"
"""The attribute of requests that says what happens to the cookie: "set" or "delete"."""


class TidingsMiddleware:
    """Sets the cookie with each page that opens a stream, and deletes it when the user logs out.

    The cookie's path is the stream's, so requests of pages don't show whether the browser has it.
    Pages that open no stream don't need it.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
    ) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self.__acall__(request)
        response = cast("HttpResponseBase", self.get_response(request))
        return self._respond(request, response)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        response = await cast("Awaitable[HttpResponseBase]", self.get_response(request))
        return self._respond(request, response)

    @staticmethod
    def _respond(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        match getattr(request, COOKIE, None):
            case "set":
                tokens.set_cookie(response, cast("AbstractBaseUser", request.user))
            case "delete":
                tokens.delete_cookie(response)
        return response
