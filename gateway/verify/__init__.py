"""Whether a deployment that is being changed loses anything: canaries, numbered publishes, and a ledger of both."""

EVENT_SOURCE = "eventsource"  # a bare one, without a client of ours
TRANSPORTS = ("ws", "sse", "poll", EVENT_SOURCE)
