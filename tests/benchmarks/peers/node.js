// A gateway on Node's `ws` and `http`, as small and as fast as it gets: each frame is made once for all its receivers.
//   node node.js PORT
"use strict";
const http = require("node:http");
const { WebSocketServer, WebSocket } = require("ws");

const channels = new Map(); // name -> Set of functions that take the two frames of a message
const PING = 15000; // milliseconds

function join(name, write) {
  if (!channels.has(name)) channels.set(name, new Set());
  channels.get(name).add(write);
  return () => {
    channels.get(name).delete(write);
    if (!channels.get(name).size) channels.delete(name);
  };
}

function publish(line) {
  const { channel, data } = JSON.parse(line);
  const receivers = channels.get(channel);
  if (!receivers) return;
  const json = JSON.stringify({ type: "message", channel, event: "bench", data, time: new Date().toISOString() });
  const frames = {
    websocket: Buffer.concat(WebSocket.Sender.frame(Buffer.from(json), { fin: true, opcode: 1, mask: false, rsv1: false })),
    sse: Buffer.from(`event: bench\ndata: ${json}\n\n`),
  };
  for (const write of receivers) write(frames);
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, "http://bench");
  if (url.pathname === "/v1/sse") {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    response.write(": hello\n\n");
    const leave = join(url.searchParams.get("channels"), (frames) => response.write(frames.sse));
    const timer = setInterval(() => response.write(": ping\n\n"), PING);
    response.on("close", () => (clearInterval(timer), leave()));
    return;
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    for (const line of Buffer.concat(pieces).toString().split("\n")) publish(line);
    response.end("{}");
  });
});
server.keepAliveTimeout = 600000;

const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket, request) => {
  const channel = new URL(request.url, "http://bench").searchParams.get("channels");
  const raw = socket._socket;
  const leave = join(channel, (frames) => raw.write(frames.websocket));
  socket.send('{"type":"welcome"}');
  socket.on("close", leave);
});
setInterval(() => sockets.clients.forEach((socket) => socket.ping()), PING);
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
