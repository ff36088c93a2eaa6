"""Ringcast's gateway: publish over HTTP, receive over WebSocket, SSE or polling, resume with one cursor."""
