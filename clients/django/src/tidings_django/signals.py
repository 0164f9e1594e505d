"""What happens when a user logs out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, transaction

from . import conf
from .middleware import COOKIE
from .sending import disconnect_user

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

logger = logging.getLogger("tidings_django")


def end_streams(
    sender: object,
    request: HttpRequest | None,
    user: AbstractBaseUser | None,
    **kwargs: Any,
) -> None:
    if request is not None:
        setattr(request, COOKIE, "delete")
    if user is None:
        return
    # Django sends the signal before it ends the session, so an exception would keep the user logged
    # in. In a transaction of its own, because a failed statement would also abort the caller's.
    try:
        with transaction.atomic(using=conf.database()):
            disconnect_user(user)
    except DatabaseError:
        logger.exception("The streams of a user who logged out go on until the token expires")
