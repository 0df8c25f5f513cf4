/* What the fake drivers share: settings from the environment, and reports over live nonces.
 *
 * FAKE_FORGE  Unix socket of a process that signs: kind, index and 32 bytes of nonce in; length (little endian) and
 *             report out. Without it reports come from files, with the nonce written into bytes 4 to 35 unsigned.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NONCE_BYTES 32

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static FILE *in_folder(const char *variable, const char *name, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv(variable) ? getenv(variable) : ".", name);
    return fopen(path, mode);
}

static uint32_t from_file(const char *variable, const char *device, int index, const char *what, uint8_t *out,
                          uint32_t limit) {
    char name[64];
    snprintf(name, sizeof name, "%s%d.%s", device, index, what);
    FILE *file = in_folder(variable, name, "rb");
    if (!file) return 0;
    uint32_t size = (uint32_t)fread(out, 1, limit, file);
    fclose(file);
    return size;
}

static uint32_t from_forge(const char *device, int index, const uint8_t *nonce, uint8_t *out, uint32_t limit) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("FAKE_FORGE"));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return 0;
    uint8_t request[2 + NONCE_BYTES] = {(uint8_t)device[0], (uint8_t)index};
    memcpy(request + 2, nonce, NONCE_BYTES);
    uint32_t size = 0, done = 0;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        write(fd, request, sizeof request) == sizeof request &&
        recv(fd, &size, sizeof size, MSG_WAITALL) == sizeof size && size <= limit) {
        done = (uint32_t)recv(fd, out, size, MSG_WAITALL);
    }
    close(fd);
    return done == size ? size : 0;
}

static uint32_t report_over(const char *variable, const char *device, int index, const uint8_t *nonce, uint8_t *out,
                            uint32_t limit) {
    if (getenv("FAKE_FORGE")) return from_forge(device, index, nonce, out, limit);
    uint32_t size = from_file(variable, device, index, "report", out, limit);
    if (size) memcpy(out + 4, nonce, NONCE_BYTES);
    return size;
}
