"""Doubles for tests, of layers 1 to 3: no Ray, no network, no waiting.

LocalHost     a host in this process: objects, storage, sockets, crashes
ManualClock   time that moves when told to
FaultyFiles   a disk that is full, breaks, or loses power
"""

from rayobjects.testing.clock import ManualClock
from rayobjects.testing.files import Crashed, FaultyFiles
from rayobjects.testing.host import LocalHost
from rayobjects.testing.sockets import LocalGateway, LocalSocket
from rayobjects.testing.stubs import LocalResponse, LocalStub

__all__ = [
    "Crashed",
    "FaultyFiles",
    "LocalGateway",
    "LocalHost",
    "LocalResponse",
    "LocalSocket",
    "LocalStub",
    "ManualClock",
]
