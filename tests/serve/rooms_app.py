"""A room that uses all of sockets; for `test_sockets_on_ray`, which serves this file."""

from __future__ import annotations

import time

import rayobjects as ro


class Lobby(ro.DurableObject):
    left: list[str] = ro.durable(factory=list)
    left_at: float = ro.durable(0.0)

    def on_connect(self, ws: ro.WebSocket) -> None:
        name = ws.query.get("name", "")
        if name == "stranger":
            ws.close(4403, "members only")
        ws.attachment = name
        ws.tags = ["even" if len(self.sockets) % 2 == 0 else "odd"]
        if "v2" in ws.subprotocols:
            ws.subprotocol = "v2"
        self.sockets.auto_response("ping", "pong")

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        if data == "out":
            ws.close(4000, "as you like")
        else:
            ws.send(data)

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.left.append(f"{ws.attachment} {code} {reason}".strip())
        self.left_at = time.time()

    def say(self, text: str, tag: str | None = None) -> None:
        self.sockets.broadcast(text, tag=tag)

    def count(self) -> int:
        return len(self.sockets)

    def gone_at(self) -> float:
        return self.left_at

    def gone(self) -> list[str]:
        return self.left
