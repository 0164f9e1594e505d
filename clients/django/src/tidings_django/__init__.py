from .sending import (
    asend_notification,
    asend_notifications,
    create_stream_ticket,
    disconnect_user,
    send_notification,
    send_notifications,
)

__all__ = [
    "asend_notification",
    "asend_notifications",
    "create_stream_ticket",
    "disconnect_user",
    "send_notification",
    "send_notifications",
]
