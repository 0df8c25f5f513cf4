/* A libnvidia-nscq.so.2 for tests: LS10 switches.
 *
 * FAKE_NSCQ_DIR   folder with switch0.chain, ..., and switch0.report, ... where no forge signs (fake_forge.h)
 * FAKE_NSCQ_SWITCHES  how many (2)
 * FAKE_NSCQ_ARCH  architecture number (2 is LS10)      FAKE_NSCQ_BROKEN  index of a switch whose report fails
 */
#include "fake_forge.h"

typedef struct { uint8_t bytes[16]; } uuid_t;
typedef struct { char data[64]; } label_t;
typedef struct { int8_t rc; void *session; } session_result_t;
typedef struct { uint32_t size; uint8_t data[0x2000]; } report_t;
typedef struct { uint8_t data[0x1400]; uint32_t size; } chain_t;

static uint8_t nonce[NONCE_BYTES];
static int open_sessions;

session_result_t nscq_session_create(uint32_t flags) {
    session_result_t result = {flags == 1 ? 0 : -1, &open_sessions};
    open_sessions++;
    return result;
}

void nscq_session_destroy(void *session) { (*(int *)session)--; }

int8_t nscq_session_set_input(void *session, uint32_t flags, void *data, uint32_t size) {
    (void)session; (void)flags;
    if (size != sizeof nonce) return -5;
    memcpy(nonce, data, size);
    return 0;
}

int8_t nscq_uuid_to_label(const uuid_t *uuid, label_t *label, uint32_t flags) {
    (void)flags;
    snprintf(label->data, sizeof label->data, "SWX-fake-%d", uuid->bytes[0]);
    return 0;
}

int8_t nscq_session_path_observe(void *session, const char *path, void (*callback)(void), void *user, uint32_t flags) {
    (void)session; (void)flags;
    int index = 0;
    if (strcmp(path, "/drv/nvswitch/{device}/uuid") == 0) {
        for (index = number("FAKE_NSCQ_SWITCHES", 2) - 1; index >= 0; index--) {
            uuid_t uuid = {{(uint8_t)index}};
            ((void (*)(const uuid_t *, int8_t, const uuid_t *, void *))callback)(&uuid, 0, &uuid, user);
        }
        return 0;
    }
    if (sscanf(path, "/SWX-fake-%d/", &index) != 1) return -5;
    uuid_t uuid = {{(uint8_t)index}};
    if (strstr(path, "/id/arch")) {
        ((void (*)(const uuid_t *, int8_t, int8_t, void *))callback)(&uuid, 0, (int8_t)number("FAKE_NSCQ_ARCH", 2), user);
    } else if (strstr(path, "/config/attestation_report")) {
        report_t report = {0};
        int8_t rc = index == number("FAKE_NSCQ_BROKEN", -1) ? -7 : 0;
        report.size = report_over("FAKE_NSCQ_DIR", "switch", index, nonce, report.data, sizeof report.data);
        ((void (*)(const uuid_t *, int8_t, report_t, void *))callback)(&uuid, rc, report, user);
    } else if (strstr(path, "/config/certificate")) {
        chain_t chain = {0};
        chain.size = from_file("FAKE_NSCQ_DIR", "switch", index, "chain", chain.data, sizeof chain.data);
        ((void (*)(const uuid_t *, int8_t, chain_t, void *))callback)(&uuid, 0, chain, user);
    } else {
        return -5;
    }
    return 0;
}
