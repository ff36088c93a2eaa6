// A gateway on Socket.IO: a room for each channel.
//   node socketio.js PORT
"use strict";
const http = require("node:http");
const { Server } = require("socket.io");

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    for (const line of Buffer.concat(pieces).toString().split("\n")) {
      const { channel, data } = JSON.parse(line);
      io.to(channel).emit("bench", data);
    }
    response.end("{}");
  });
});
server.keepAliveTimeout = 600000;

const io = new Server(server, { transports: ["websocket"], pingInterval: 15000, serveClient: false });
io.on("connection", (socket) => socket.join(socket.handshake.query.channels));
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
