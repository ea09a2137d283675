"""Every limit of the system, with its unit and its reason. Meeting one gives a clear error.

Sizes are in bytes (`_BYTES_`), times in seconds (`_S`), everything else counts. How limits depend
on each other is asserted at the end.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

OBJECT_NAME_BYTES_MAX = 1024
"""UTF-8 bytes of an object's name: fits a URL, an index and a log line."""

KEY_BYTES_MAX = 2 * KIB
"""UTF-8 bytes of a storage key: the same as Cloudflare's, and small beside a block."""

VALUE_BYTES_MAX = 8 * MIB
"""One stored value, encoded. A record must fit in memory many times over; larger things belong
into an object store, with their address in the object."""

RECORD_BYTES_MAX = 128 * MIB
"""One journal record: a reply and a few dozen large values. Also what recovery believes of a
length field: more is damage."""

CALL_BYTES_MAX = 64 * MIB
"""Encoded arguments or reply of one call."""

SOCKET_MESSAGE_BYTES_MAX = 1 * MIB
"""One WebSocket message; the server itself takes no more than 16 MiB."""

SOCKETS_MAX = 32_768
"""Open sockets of one object: Cloudflare's figure; the room's list of them is about 3 MB."""

SOCKET_TAGS_MAX = 10
"""Tags of one socket: Cloudflare's figure."""

SOCKET_TAG_BYTES_MAX = 256
"""UTF-8 bytes of a tag: room for a name; it is in the room's list for each socket that has it."""

AUTO_RESPONSES_MAX = 10
"""Pairs of an object that its gateways answer: they are sent to each of its sockets."""

AUTO_RESPONSE_BYTES_MAX = 2 * KIB
"""Each half of such a pair: Cloudflare's figure."""

ATTACHMENT_BYTES_MAX = 16 * KIB
"""A socket's attachment, encoded."""

CHANGES_BYTES_MAX = 48 * MIB
"""What one call writes and sends, encoded: with its reply it must fit into a record."""

REMEMBERED_BYTES_MAX = 8 * MIB
"""What a large object remembers of the storage's answers: one value of the largest kind."""

WAITING_CALLS_MAX = 1_000
"""Calls that wait for one object's turn. At 1 ms a call the last one waits for a second."""

CHANNEL_CALLS_MAX = 100_000
"""Unanswered calls of one process to one host: about 50 MB of memory at 500 bytes each."""

CHANNEL_BATCHES_HELD_MAX = 64
"""Batches of one channel that wait for an earlier one; the channel has only a few under way."""

BATCH_CALLS_MAX = 4_096
"""Calls in one batch: about 20 ms of work for a host, so that others get their turn."""

LATE_BATCH_S = 30.0
"""For so long the network may still bring what a dead process has sent: twice as long as a call to
a node that does not answer hangs in Ray."""

BATCH_BYTES_MAX = 4 * MIB
"""Arguments in one batch, unless a single call has more."""

GROUP_RECORDS_MAX = 8_192
"""Records that are written and synced together."""

GROUP_BYTES_MAX = 16 * MIB
"""Bytes that are written and synced together, unless a single record has more: about 50 ms."""

UNSYNCED_BYTES_MAX = 256 * MIB
"""Records that wait for the disk; a host that is further ahead refuses calls."""

SEGMENT_BYTES_MAX = 64 * MIB
"""A journal segment is closed at this size, so that folded ones can be deleted."""

FOLD_RECORDS = 200_000
"""Records in the memtable that start a fold. Objects that are written again and again are folded
once for many records; recovery reads so many in about a second."""

FOLD_BYTES = 32 * MIB
"""Bytes in the memtable that start a fold."""

FOLD_AFTER_S = 30.0
"""A record is folded after this time at the latest, so that a restart has little to read."""

MEMTABLE_BYTES_MAX = 512 * MIB
"""A host whose folding falls behind by this much refuses calls until it has caught up."""

FINISHED_WINDOW_S = 600.0
"""How long the reply of a finished call is kept for a repetition of the same call id."""

HELD_WINDOW_S = 7 * 86_400.0
"""How long the reply of a call of another object is kept if that object never says that it has it:
so long may a host be down without any doubt about what it had done. What is older than that when
its host comes back is not guessed at, but listed as failed."""

HELD_BYTES_MAX = 256 * MIB
"""Replies that a shard holds for other objects; beyond, their calls are refused."""

PROMISES_MAX = 1_000_000
"""Schedules, told messages and begun calls that a shard keeps; about 400 MB."""

PROMISES_BYTES_MAX = 256 * MIB
"""Their arguments together: they are held in memory, whole."""

SCHEDULES_MAX = 10_000
"""Schedules of one object: they are loaded with it."""

TOLD_MAX = 10_000
"""Messages of one object that are not delivered yet; beyond, its calls that tell more fail."""

CONCURRENT_CALLS_MAX = 1_000
"""Calls of concurrent methods that one object runs at once."""

BLOCKING_THREADS_MAX = 32
"""Threads of a host on which methods marked `blocking` compute at once, for each depth of the calls
(`objects.threads`); further such calls wait. They share one interpreter, so more would not make
them faster."""

BLOCKING_THREADS_HELD_MAX = 256
"""Such threads of one depth together with those whose methods wait for other objects: 20 KB each
beside what the method holds."""

BLOCKING_THREAD_WAIT_S = 30.0
"""For so long a call waits for a thread where all of these are held; then it is refused."""

STREAM_ITEMS_AHEAD_MAX = 64
"""Items that a stream's method runs ahead of its reader: enough to keep a reader busy that is a few
milliseconds away."""

STREAM_BYTES_AHEAD_MAX = 256 * KIB
"""The same in bytes, unless a single item has more."""

STREAM_ITEM_BYTES_MAX = 8 * MIB
"""One item of a stream, encoded: as large as a stored value."""

STREAMS_MAX = 4_000
"""Streams that are open at a host: 1 GB if no reader reads."""

STREAM_SILENT_S = 10.0
"""A process that has not been heard of for this long reads its streams no more: they are cut off,
since they may hold their objects."""

STREAM_STALLED_S = 300.0
"""How long a stream's method waits for a reader that lives and does not read; then it is ended."""

STREAM_GRACE_S = 30.0
"""How long a stream that has its object's turn may hold up a new version of the class."""

EVENT_PING_S = 15.0
"""How often an event stream over HTTP says something: proxies cut connections that are silent for
30 or 60 s."""

CONTEXT_ENTRIES_MAX = 64
CONTEXT_BYTES_MAX = 8 * KIB
"""What a call carries along: as much as W3C's Baggage wants to be passed on. It travels with every
call of a chain."""

STEPS_BYTES_MAX = RECORD_BYTES_MAX // 2
"""Ids of the calls to others that one call makes (of 60 bytes: 700,000 calls): the record with
which it ends takes all of them back, and must have room for that."""

STEP_BASE_BYTES_MAX = 200
"""What such an id is made of, before the position: a longer one is hashed, so that a long name or
Idempotency-Key does not use that room up."""

FIRINGS_AT_ONCE_MAX = 100
"""Calls of schedules that are under way in a host at once, so that what came due while it was down
does not crowd out everybody else."""

FIRING_PLACE_S = 2.0
"""How long one counts among them: whose object is busy, or whose method takes long, must not keep
the others of the shard from firing."""

FIRINGS_OF_OBJECT_MAX = 10
"""Those of one object that are under way at once: more would only wait for each other, and crowd
out its callers."""

LOOP_FIRINGS = 1_000
LOOP_WITHIN_S = 10.0
LOOP_PAUSE_S = 0.1
"""An object whose schedules plan something for the next LOOP_PAUSE_S, so often within so long, is
reported: it plans itself anew at once, for ever."""

FINISHED_CALLS_MAX = 1_000_000
"""Finished calls that a shard keeps; beyond, calls with an Idempotency-Key are refused until the
oldest leave their window. About 300 MB."""

FINISHED_BYTES_MAX = 256 * MIB
"""Replies of finished calls that a shard keeps, beside what each call takes; beyond, the oldest
replies are dropped, and it stays known that their calls have taken effect."""

FINISHED_REPLY_BYTES_SMALL = 64
"""Replies that are not worth dropping."""

LOAD_WHOLE_KEYS_MAX = 256
"""An object with at most this many storage keys is loaded whole; a larger one key by key."""

LOAD_WHOLE_BYTES_MAX = 256 * KIB
"""The same, for the bytes of its stored values."""

PAGE_KEYS_MAX = 1_000
"""Keys, or object names, that one query brings. About 5 ms."""

ACTIVATIONS_MAX = 100_000
"""Live objects of one host (about 1 GB at 10 KB each); beyond, the longest idle one leaves."""

OUTBOX_MESSAGES_MAX = 100_000
"""Socket messages that a gateway has not acknowledged yet; beyond, calls that send are refused."""

SOCKET_QUEUE_BYTES_MAX = 4 * MIB
"""What a slow reader's socket may have waiting at its gateway; beyond, it is closed (1013)."""

SOCKET_UNANSWERED_MAX = 64
"""Messages of one socket that its object has not answered; beyond, the gateway reads no more from
it, and TCP makes the client wait."""

FAREWELLS_MAX = 100_000
"""Closed sockets of a gateway whose objects could not be told yet, and will be told again; beyond,
they find out with the next session. About 50 MB."""

SOCKET_CLOSE_WAIT_S = 5.0
"""How long the close frame to a socket that does not read is waited for."""

IDEMPOTENCY_KEY_BYTES_MAX = 255
"""An Idempotency-Key: room for a UUID or a hash with a prefix; it is kept with the reply."""

POLL_S = 1.0
"""How long a standing request stays open. Short, because a gateway that has died is noticed by
the request that does not come again."""

GATEWAY_SUSPECT_S = 2.0
"""A gateway that has not been heard of for this long may be dead: its host asks Ray whether the
process lives. On a busy machine this happens without cause, and costs a question."""

GATEWAY_SILENT_S = 10.0
"""A gateway that has not been heard of for this long is dead, whatever Ray says (its node may be
cut off), and its sockets are closed. Long, because a gateway that only stood still loses them."""

STALLED_S = 3.0
"""A host that has not run its sweep for this long was held up itself, and takes no gateway for
dead because of it."""

PROBE_EVERY_S = 0.4
"""A call of another object that has waited so long for its turn, and again after as long, is
followed to see whether it waits for itself."""

SHARDS_MAX = 4_096
"""Shards of a pool: one for each slot."""

SHARDS_DEFAULT_MAX = 16
"""Shards that a new storage root gets at most unless it is told otherwise: each is a process."""

LIST_HOSTS_AT_ONCE_MAX = 16
"""Hosts that one listing asks at the same time."""

CHAIN_DEPTH_MAX = 64
"""Objects that wait for each other in one chain of calls."""

LOG_ENTRY_CHARACTERS_MAX = 16 * KIB
"""A logged message or traceback: a hundred frames; beyond, its middle is left out."""

LOG_ENTRIES_PER_S_MAX = 10
"""What one host logs in a second: more than anybody reads; the others are counted."""

LOG_PRINTS_PER_S_MAX = 100
"""What methods of one host print in a second and `rayobjects serve` shows; the rest is counted
there, and all of it is among Ray's logs."""

LOG_BYTES_MAX = 10 * MIB
"""One host's log; beyond, it is renamed, the renamed one before it goes, and a new one begins."""

LOG_READ_BYTES_MAX = 1 * MIB
"""What is read of a host's log at once."""

assert VALUE_BYTES_MAX < CALL_BYTES_MAX < RECORD_BYTES_MAX
assert VALUE_BYTES_MAX < CHANGES_BYTES_MAX
assert CALL_BYTES_MAX + CHANGES_BYTES_MAX < RECORD_BYTES_MAX
assert VALUE_BYTES_MAX <= REMEMBERED_BYTES_MAX
assert CHANGES_BYTES_MAX < PROMISES_BYTES_MAX
assert max(SCHEDULES_MAX, TOLD_MAX) < PROMISES_MAX
assert FIRINGS_OF_OBJECT_MAX < FIRINGS_AT_ONCE_MAX < WAITING_CALLS_MAX
assert GROUP_BYTES_MAX <= UNSYNCED_BYTES_MAX <= MEMTABLE_BYTES_MAX
assert FOLD_BYTES < MEMTABLE_BYTES_MAX
assert 16 * LOG_ENTRY_CHARACTERS_MAX < LOG_READ_BYTES_MAX < LOG_BYTES_MAX
assert CALL_BYTES_MAX < FINISHED_BYTES_MAX // 2
assert FINISHED_CALLS_MAX * FINISHED_REPLY_BYTES_SMALL < FINISHED_BYTES_MAX // 2
assert FINISHED_WINDOW_S < HELD_WINDOW_S
assert BLOCKING_THREADS_MAX < BLOCKING_THREADS_HELD_MAX
assert POLL_S < STREAM_SILENT_S < STREAM_STALLED_S
assert STREAM_ITEM_BYTES_MAX < CALL_BYTES_MAX
assert POLL_S < GATEWAY_SUSPECT_S < GATEWAY_SILENT_S < FINISHED_WINDOW_S
