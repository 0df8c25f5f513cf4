/* A libnvidia-ml.so.1 for tests: the calls that the guest makes, answered from environment variables and files.
 *
 * FAKE_NVML_DIR    folder with gpu0.chain, gpu1.chain, ..., and gpu0.report, ... where no forge signs (fake_forge.h)
 * FAKE_NVML_GPUS   number of GPUs                    FAKE_NVML_ARCH   architecture number (9 Hopper)
 * FAKE_NVML_CC     1 confidential mode on            FAKE_NVML_DEV    1 devtools
 * FAKE_NVML_OLD    1: a driver without the settings, 2: without the state as well, 3: with a state that fails
 * FAKE_NVML_BROKEN index of a GPU whose report fails
 * FAKE_NVML_SIZE   a report size that is a lie
 * The ready state is the file `ready` in the folder, as the driver's is system-wide.
 */
#include "fake_forge.h"

#define OK 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define UNKNOWN 999

static int handles[64];

int nvmlInit_v2(void) { return OK; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake driver"; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)number("FAKE_NVML_GPUS", 1); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, int **device) {
    if (index >= (unsigned)number("FAKE_NVML_GPUS", 1)) return INVALID_ARGUMENT;
    handles[index] = (int)index;
    *device = &handles[index];
    return OK;
}

int nvmlDeviceGetUUID(int *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-fake-%d", *device);
    return OK;
}

int nvmlDeviceGetArchitecture(int *device, unsigned *arch) {
    (void)device;
    *arch = (unsigned)number("FAKE_NVML_ARCH", 9);
    return OK;
}

typedef struct { unsigned version, environment, feature, devtools, multi_gpu; } settings_t;

int nvmlSystemGetConfComputeSettings(settings_t *settings) {
    if (number("FAKE_NVML_OLD", 0)) return NOT_SUPPORTED;
    if (settings->version != 0x1000014) return INVALID_ARGUMENT;
    settings->environment = number("FAKE_NVML_CC", 1) ? 2 : 0;
    settings->feature = (unsigned)number("FAKE_NVML_CC", 1);
    settings->devtools = (unsigned)number("FAKE_NVML_DEV", 0);
    settings->multi_gpu = 1;
    return OK;
}

int nvmlSystemGetConfComputeState(unsigned state[3]) {
    if (number("FAKE_NVML_OLD", 0) == 2) return NOT_SUPPORTED;
    if (number("FAKE_NVML_OLD", 0) == 3) return UNKNOWN;
    state[0] = 2;
    state[1] = (unsigned)number("FAKE_NVML_CC", 1);
    state[2] = (unsigned)number("FAKE_NVML_DEV", 0);
    return OK;
}

typedef struct { unsigned size, attestation_size; unsigned char chain[0x1000], attestation_chain[0x1400]; } chain_t;

int nvmlDeviceGetConfComputeGpuCertificate(int *device, chain_t *chain) {
    if (!number("FAKE_NVML_CC", 1)) return NOT_SUPPORTED;
    chain->attestation_size = 
        from_file("FAKE_NVML_DIR", "gpu", *device, "chain", chain->attestation_chain, sizeof chain->attestation_chain);
    return chain->attestation_size ? OK : UNKNOWN;
}

typedef struct {
    unsigned cec_present, size, cec_size;
    unsigned char nonce[32], report[0x2000], cec_report[0x1000];
} report_t;

int nvmlDeviceGetConfComputeGpuAttestationReport(int *device, report_t *report) {
    if (!number("FAKE_NVML_CC", 1)) return NOT_SUPPORTED;
    if (*device == number("FAKE_NVML_BROKEN", -1)) return UNKNOWN;
    report->size = report_over("FAKE_NVML_DIR", "gpu", *device, report->nonce, report->report, sizeof report->report);
    if (!report->size) return UNKNOWN;
    report->size = (unsigned)number("FAKE_NVML_SIZE", (int)report->size);
    return OK;
}

int nvmlSystemGetConfComputeGpusReadyState(unsigned *ready) {
    FILE *file = in_folder("FAKE_NVML_DIR", "ready", "rb");
    *ready = 0;
    if (file) {
        *ready = fgetc(file) == '1';
        fclose(file);
    }
    return number("FAKE_NVML_CC", 1) ? OK : NOT_SUPPORTED;
}

int nvmlSystemSetConfComputeGpusReadyState(unsigned ready) {
    FILE *file = in_folder("FAKE_NVML_DIR", "ready", "wb");
    if (!file) return INVALID_ARGUMENT;
    fputc(ready ? '1' : '0', file);
    fclose(file);
    return OK;
}
