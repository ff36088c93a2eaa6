"""Whether a deployment that is being changed loses anything: canaries, numbered publishes, and a ledger of both."""
