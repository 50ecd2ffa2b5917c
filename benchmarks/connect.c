/* How long connect() takes, and what the kernel measured of the handshake: a line per connection, in ns and us.
 *
 *     connect ADDRESS PORT COUNT INTERVAL_US
 *
 * The handshake is tcpi_rtt (getsockopt TCP_INFO), which right after it is the time from SYN to SYN-ACK. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) return 2;
    int count = atoi(argv[3]);
    long long interval = atoll(argv[4]) * 1000, due = now();
    for (int i = 0; i < count; i++, due += interval) {
        struct timespec until = {due / 1000000000LL, due % 1000000000LL};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        int s = socket(AF_INET, SOCK_STREAM, 0);
        struct linger reset = {1, 0};
        setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        long long begun = now();
        if (connect(s, (struct sockaddr *)&to, sizeof to)) return 1;
        long long took = now() - begun;
        struct tcp_info info;
        socklen_t size = sizeof info;
        getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &size);
        printf("%lld %u\n", took, info.tcpi_rtt);
        close(s);
    }
    return 0;
}
