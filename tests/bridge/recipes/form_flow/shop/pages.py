"""Pages with a form, each of which leads to the next."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from .orders import place_order
from .views import LIFETIME, stream_token


@login_required
def page(request, number):
    context = {
        "number": number,
        "next": number + 1,
        "stream": settings.STREAM,
        "closes": settings.CLOSES,
    }
    response = render(request, "page.html", context)
    response.set_cookie(
        "tidings_token",
        stream_token(request.user),
        max_age=LIFETIME,
        path="/stream",
        secure=request.is_secure(),
        httponly=True,
        samesite="Strict",
    )
    return response


@require_POST
@login_required
def order(request, number):
    place_order(request.user, request.POST["item"])
    return redirect("page", number + 1)
