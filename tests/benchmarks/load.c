/* The subscribers of a benchmark: thousands of connections in one epoll loop, far cheaper than what is measured.

     load HOST PORT REQUESTS [head]    REQUESTS is a file: for each connection its request, and what it sends once it
                                       has been answered, each behind a 4-byte little-endian length; with `head` a
                                       connection is open once it has the head of its answer, for servers that then wait

   Commands on stdin, each answered by one line of JSON on stdout:
     open WINDOW        connect all, WINDOW at a time; answered when every one has had its first bytes after the head
     expect COUNT       wait until each connection has had COUNT more messages (0: forget what was counted)
     total COUNT        wait until all of them together have had COUNT more messages
     latencies          how long messages took from `t` to here, in seconds: the median and the 99th percentile
     close              close all

   A message is whatever holds  "n":<number>,"t":<number>  : n counts up by one on each connection, and t is when it was
   published, in microseconds of the monotonic clock. Lost, repeated and reordered ones are counted by n. WebSocket pings
   are answered, and those of Engine.IO and Centrifugo; a connection that ends is counted, never reopened. */
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

#define TAIL 96
#define ENGINE_PING "\x81\x01\x32" /* Engine.IO's, as text */
#define EMPTY "\x81\x02{}" /* Centrifugo's ping, and its pong */
#define AWAKE .1 /* seconds after a command that it does not sleep: else each send() would have to wake it up, which none
                    over a network has to */
#define BUCKETS 100000 /* of 10 microseconds: up to a second */

struct connection {
    int fd, opened, head, tailed, followed;
    long next, messages;
    char *request, *follow;
    uint32_t length, following;
    char tail[TAIL];
};

static struct connection *all;
static int count, poller, opened, ended, by_head;
static long messages, wanted, waiting, lost, repeated, latencies[BUCKETS + 1];
static char buffer[1 << 20];
static struct sockaddr_in address;

static double asked; /* when a command was last under way */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) { perror(what); exit(1); }

static void begin(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    /* A machine has 28,000 ports for one address to connect from to another: each thousand its own loopback address. */
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7f000001u + (uint32_t)((c - all) / 1000 + 1) * 256);
    int one = 1;
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one); /* else bind() looks long for one that is free */
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("bind");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    if (write(c->fd, c->request, c->length) != (ssize_t)c->length) die("write");
    c->opened = c->head = c->tailed = c->followed = 0;
    c->next = -1;
}

static void finish(struct connection *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    ended++;
}

static void say(struct connection *c, const char *data, size_t size) {
    if (write(c->fd, data, size) < 0 && errno != EAGAIN) finish(c);
}

static void pong(struct connection *c, const char *data, long size) { /* what is sent by us holds no byte above 127 */
    static char answer[6 + 125] = "\x8a";
    const char *ping = memchr(data, 0x89, size);
    long length = ping && ping + 1 < data + size ? ping[1] : -1;
    if (length >= 0 && ping + 2 + length <= data + size) {
        answer[1] = (char)(0x80 | length);
        memcpy(answer + 6, ping + 2, length);
        say(c, answer, 6 + length);
    } else if (size >= 3 && (!memcmp(data, ENGINE_PING, 3) || !memcmp(data + size - 3, ENGINE_PING, 3)))
        say(c, "\x81\x81\0\0\0\0\x33", 7);
    else if (size >= 4 && (!memcmp(data, EMPTY, 4) || !memcmp(data + size - 4, EMPTY, 4)))
        say(c, "\x81\x82\0\0\0\0{}", 8);
}

static void look(struct connection *c, char *data, long size) {
    char *end = data + size, *at = data;
    int64_t micros = (int64_t)(now() * 1e6);
    while ((at = memmem(at, end - at, "\"n\":", 4))) {
        char *stop;
        long n = strtol(at + 4, &stop, 10);
        if (stop >= end || memcmp(stop, ",\"t\":", 5)) { at += 4; continue; }
        int64_t t = strtoll(stop + 5, &stop, 10);
        at = stop;
        if (c->next >= 0 && n > c->next) lost += n - c->next;
        if (c->next >= 0 && n < c->next) { repeated++; continue; }
        c->next = n + 1;
        if (++c->messages == wanted) waiting--;
        messages++;
        int64_t late = (micros - t) / 10;
        latencies[late < 0 ? 0 : late > BUCKETS ? BUCKETS : late]++;
    }
}

static void receive(struct connection *c) {
    memcpy(buffer, c->tail, c->tailed);
    ssize_t got = recv(c->fd, buffer + c->tailed, sizeof buffer - TAIL - 1, MSG_DONTWAIT); /* more than can be there */
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { finish(c); return; }
    long size = c->tailed + got;
    buffer[size] = 0;
    char *data = buffer;
    if (!c->head) {
        int first = !c->tailed; /* what says whether it was refused */
        if (first && (size < 12 || (memcmp(data + 8, " 101", 4) && memcmp(data + 8, " 200", 4)))) { finish(c); return; }
        char *end = memmem(buffer, size, "\r\n\r\n", 4);
        if (!end) { c->tailed = size < TAIL ? size : TAIL; /* enough of a head */ memcpy(c->tail, buffer + size - c->tailed, c->tailed); return; }
        c->head = 1;
        size -= end + 4 - buffer;
        data = end + 4;
        c->tailed = 0;
    }
    if (!c->opened && (size || by_head)) {
        if (c->following && !c->followed) {
            c->followed = 1;
            say(c, c->follow, c->following);
        } else c->opened = 1, opened++;
    }
    pong(c, data, size);
    if (c->fd < 0) return;
    /* What a read has cut in two is looked at with the next: from its last "n": on, where its numbers may go on. */
    char *last = size > 4 ? memrchr(data, '"', size) : NULL;
    long keep = 0;
    for (char *at = data + (size > TAIL ? size - TAIL : 0); last && (at = memmem(at, data + size - at, "\"n\":", 4)); at += 4) {
        char *t = memmem(at, data + size - at, ",\"t\":", 5);
        char *done = t ? t + 5 : data + size;
        while (done < data + size && *done >= '0' && *done <= '9') done++;
        if (done >= data + size) { keep = data + size - at; break; }
    }
    if (!keep) for (keep = size < 3 ? size : 3; keep && memcmp(data + size - keep, "\"n\":", keep); keep--);
    look(c, data, size - keep);
    c->tailed = keep;
    memcpy(c->tail, data + size - keep, keep);
}

static void turn(int milliseconds) {
    struct epoll_event events[512];
    int ready = epoll_wait(poller, events, 512, now() - asked < AWAKE ? 0 : milliseconds);
    for (int i = 0; i < ready; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->fd >= 0) receive(c);
    }
}

static void want(long number) { /* counts who waits for so many, so that nobody has to be asked again */
    wanted = number;
    waiting = 0;
    for (int i = 0; i < count; i++) waiting += all[i].messages < wanted;
}

static double percentile(double share) {
    long sum = 0, seen = 0;
    for (int i = 0; i <= BUCKETS; i++) sum += latencies[i];
    for (int i = 0; i <= BUCKETS; i++)
        if ((seen += latencies[i]) >= share * sum && sum) return i * 10e-6;
    return 0;
}

static void forget(void) {
    memset(latencies, 0, sizeof latencies);
    for (int i = 0; i < count; i++) all[i].messages = 0;
    messages = lost = repeated = 0;
}

static void answer(double began, int complete) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double user = used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6;
    printf("{\"seconds\":%.6f,\"complete\":%s,\"opened\":%d,\"ended\":%d,\"messages\":%ld,\"lost\":%ld,\"repeated\":%ld,"
           "\"user\":%.6f,\"cpu\":%.6f}\n",
           now() - began, complete ? "true" : "false", opened, ended, messages, lost, repeated, user,
           user + used.ru_stime.tv_sec + used.ru_stime.tv_usec / 1e6);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "load HOST PORT REQUESTS [head]\n"), 2;
    by_head = argc > 4;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    FILE *file = fopen(argv[3], "rb");
    if (!file) die(argv[3]);
    uint32_t length;
    while (fread(&length, 4, 1, file) == 1) {
        if (count % 1024 == 0) all = realloc(all, (count + 1024) * sizeof *all);
        struct connection *c = &all[count++];
        *c = (struct connection){.fd = -1, .length = length, .request = malloc(length)};
        if (fread(c->request, 1, length, file) != length || fread(&c->following, 4, 1, file) != 1) die("requests");
        c->follow = malloc(c->following);
        if (fread(c->follow, 1, c->following, file) != c->following) die("requests");
    }
    poller = epoll_create1(0);
    char line[128];
    fcntl(0, F_SETFL, O_NONBLOCK);
    for (size_t used = 0;;) { /* messages are read while no command is under way, so that nobody is slow */
        turn(5);
        ssize_t got = read(0, line + used, sizeof line - used - 1);
        if (got == 0) return 0;
        if (got < 0) continue;
        used += got;
        line[used] = 0;
        char *end = strchr(line, '\n');
        if (!end) continue;
        used = 0;
        double began = now();
        long number = strchr(line, ' ') ? atol(strchr(line, ' ')) : 0;
        if (!strncmp(line, "open", 4)) {
            opened = ended = 0;
            for (int next = 0; (next < count || opened + ended < count) && now() - began < 120;) {
                while (next < count && next - opened - ended < number) begin(&all[next++]);
                asked = now();
                turn(1);
            }
            answer(began, opened == count);
        } else if (!strncmp(line, "expect", 6)) {
            if (!number) forget();
            want(number);
            while (waiting && now() - began < 60) asked = now(), turn(1);
            answer(began, !waiting);
        } else if (!strncmp(line, "total", 5)) {
            while (messages < number && now() - began < 60) asked = now(), turn(1);
            answer(began, messages >= number);
        } else if (!strncmp(line, "latencies", 9)) {
            printf("{\"p50\":%.6f,\"p99\":%.6f}\n", percentile(.5), percentile(.99));
            fflush(stdout);
        } else if (!strncmp(line, "close", 5)) {
            for (int i = 0; i < count; i++) finish(&all[i]);
            answer(began, 1);
        }
    }
}
