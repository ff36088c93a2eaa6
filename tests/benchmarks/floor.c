/* The floor that servers are compared with: an epoll loop that does nothing but the system calls of the same work.

     floor PORT [FRAME]    FRAME: ws (default) or sse

   It answers whatever ends in an empty line with a head and a first frame, and holds the connection. On stdin:
     fan MESSAGES SIZE SENDS   MESSAGES of SIZE bytes to every connection: one send() each, or all in one if SENDS is 1
     one COUNT SIZE            COUNT messages of SIZE bytes, each to the next connection alone
   Answered by one line. n and t are as load.c wants them; n counts per connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection { int fd, begun, used; long n; char head[2048]; };

static struct connection *held[200000];
static int count, sse, turn_of;
static const char WS[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x02[]";
static const char SSE[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 1000\n\n";

static int64_t micros(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static int message(char *out, int size, long n) { /* a message object whose data has `size` bytes */
    char body[70000];
    int length = snprintf(body, sizeof body,
        "{\"type\":\"message\",\"channel\":\"topic:bench\",\"offset\":1763712345123456,\"id\":\"01JD0000000000000000000000\","
        "\"event\":\"bench\",\"data\":{\"n\":%ld,\"t\":%lld,\"pad\":\"", n, (long long)micros());
    memset(body + length, 'x', size);
    length += size;
    length += snprintf(body + length, 64, "\"},\"time\":\"2026-11-20T12:00:00.123Z\"}");
    if (sse) return sprintf(out, "event: bench\ndata: %.*s\n\n", length, body);
    int head = length < 126 ? 2 : 4;
    out[0] = (char)0x81;
    out[1] = (char)(length < 126 ? length : 126);
    if (head == 4) out[2] = (char)(length >> 8), out[3] = (char)length;
    memcpy(out + head, body, length);
    return head + length;
}

static void put(struct connection *c, const char *data, int size) {
    while (size > 0) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent > 0) data += sent, size -= sent;
    }
}

static void fan(int many, int size, int sends) {
    static char frames[64][70100], joined[1 << 20];
    int lengths[64], total = 0;
    for (int m = 0; m < many; m++) { /* encoded once, as every connection is at the same n */
        lengths[m] = message(frames[m], size, count ? held[0]->n + m : 0);
        memcpy(joined + total, frames[m], lengths[m]);
        total += lengths[m];
    }
    for (int i = 0; i < count; i++) {
        if (sends == 1) put(held[i], joined, total);
        else for (int m = 0; m < many; m++) put(held[i], frames[m], lengths[m]);
        held[i]->n += many;
    }
}

static void receive(struct connection *c) {
    ssize_t got = read(c->fd, c->head + c->used, sizeof c->head - c->used - 1);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close(c->fd);
        for (int i = 0; i < count; i++) if (held[i] == c) { held[i] = held[--count]; break; }
        free(c);
        return;
    }
    if (c->begun) return;
    c->used += got;
    if (!memmem(c->head, c->used, "\r\n\r\n", 4)) return;
    c->begun = 1;
    c->used = 0;
    if (sse) put(c, SSE, sizeof SSE - 1);
    else put(c, WS, sizeof WS - 1);
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    sse = argc > 2 && !strcmp(argv[2], "sse");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, poller = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("listen"), 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    struct connection control = {.fd = 0};
    event.data.ptr = &control;
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    c = calloc(1, sizeof *c);
                    c->fd = fd;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    event.data.ptr = held[count++] = c;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (c == &control) {
                char line[128];
                ssize_t got = read(0, line, sizeof line - 1);
                if (got <= 0) return 0;
                line[got] = 0;
                int a = 0, b = 0, d = 0;
                if (sscanf(line, "fan %d %d %d", &a, &b, &d) == 3) fan(a, b, d);
                else if (sscanf(line, "one %d %d", &a, &b) == 2)
                    for (; a > 0 && count; a--, turn_of++) {
                        static char frame[70100];
                        struct connection *next = held[turn_of % count];
                        put(next, frame, message(frame, b, next->n++));
                    }
                puts("done");
                fflush(stdout);
            } else receive(c);
        }
    }
}
