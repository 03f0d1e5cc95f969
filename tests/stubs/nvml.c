/* A stand-in for libnvidia-ml.so.1, for the tests: as strict about its arguments as NVML's reference says, so that the
 * program's own loading and calling is tested. What it answers lies in files below SCENARIO, a path given when it is
 * compiled; a report is given for exactly the nonces that have a file, which a signer may write when it is wanted. Layouts and codes: nvml.h, API version 12. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { MAX_GPUS = 16 };

struct settings { unsigned version, environment, feature, dev_tools, multi_gpu; };
struct chains { unsigned device_len, attestation_len; unsigned char device[0x1000], attestation[0x1400]; };
struct report {
    unsigned cec_present, len, cec_len;
    unsigned char nonce[32], report[0x2000], cec[0x1000];
};

static int running;
static char devices[MAX_GPUS];

/* Contents of a file of the scenario: bytes read, -1 without the file. */
static long answer(const char *name, void *to, size_t room) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", SCENARIO, name);
    FILE *file = fopen(path, "rb");
    if (!file) return -1;
    long len = (long)fread(to, 1, room, file);
    fclose(file);
    return len;
}

static int text(const char *name, char *to, unsigned room) {
    if (!running) return UNINITIALIZED;
    if (!to || room < 2) return INVALID;
    long len = answer(name, to, room - 1);
    if (len < 0) return UNKNOWN;
    to[len] = 0;
    return OK;
}

static unsigned number(const char *name, unsigned otherwise) {
    char digits[32] = {0};
    return answer(name, digits, sizeof digits - 1) < 0 ? otherwise : (unsigned)strtoul(digits, 0, 10);
}

static int of(const void *device, const char *what, char *name, size_t room) {
    long index = (const char *)device - devices;
    if (!running) return UNINITIALIZED;
    if (!device || index < 0 || index >= (long)number("count", 0)) return INVALID;
    snprintf(name, room, "gpu%ld-%s", index, what);
    return OK;
}

static int text_of(void *device, const char *what, char *to, unsigned room) {
    char name[64];
    int code = of(device, what, name, sizeof name);
    return code ? code : text(name, to, room);
}

int nvmlInit_v2(void) {
    if (number("crash", 0)) abort();
    while (number("hang", 0)) pause();
    running++;
    return (int)number("init", OK);
}

int nvmlShutdown(void) { return running ? (running--, OK) : UNINITIALIZED; }

int nvmlSystemGetDriverVersion(char *to, unsigned room) { return text("driver", to, room); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!running) return UNINITIALIZED;
    if (!count) return INVALID;
    *count = number("count", 0);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (!running) return UNINITIALIZED;
    if (!device || index >= number("count", 0) || index >= MAX_GPUS) return INVALID;
    *device = devices + index;
    return OK;
}

int nvmlDeviceGetUUID(void *device, char *to, unsigned room) { return text_of(device, "uuid", to, room); }
int nvmlDeviceGetName(void *device, char *to, unsigned room) { return text_of(device, "name", to, room); }
int nvmlDeviceGetVbiosVersion(void *device, char *to, unsigned room) { return text_of(device, "vbios", to, room); }

int nvmlDeviceGetArchitecture(void *device, unsigned *architecture) {
    char name[64];
    int code = of(device, "arch", name, sizeof name);
    if (!code) *architecture = number(name, 9);
    return code;
}

#ifndef OLD
int nvmlSystemGetConfComputeSettings(struct settings *settings) {
    if (!running) return UNINITIALIZED;
    if (!settings) return INVALID;
    if (settings->version != (sizeof *settings | 1u << 24)) return VERSION_MISMATCH;
    if (number("incapable", 0)) return NOT_SUPPORTED;
    settings->environment = number("environment", 2);
    settings->feature = number("feature", 1);
    settings->dev_tools = number("dev-tools", 0);
    settings->multi_gpu = number("multi-gpu", 0);
    return OK;
}

/* Contents of a file that a signer writes, once it is asked for by a file of that name in `wanted`. */
static long wanted(const char *name, void *to, size_t room) {
    char path[4096];
    snprintf(path, sizeof path, "%s/wanted/%s", SCENARIO, name);
    FILE *file = fopen(path, "wb");
    if (!file) return -1;
    fclose(file);
    long len = -1;
    for (int patience = 1000; len < 0 && patience; patience--) {
        usleep(10000);
        len = answer(name, to, room);
    }
    return len;
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, struct report *report) {
    char name[160], nonce[65];
    if (!report) return INVALID;
    for (int i = 0; i < 32; i++) sprintf(nonce + 2 * i, "%02x", report->nonce[i]);
    char what[80];
    snprintf(what, sizeof what, "report-%s", nonce);
    int code = of(device, what, name, sizeof name);
    if (code) return code;
    if (!number("feature", 1)) return NOT_SUPPORTED;
    long len = answer(name, report->report, sizeof report->report);
    if (len < 0 && number("signer", 0)) len = wanted(name, report->report, sizeof report->report);
    if (len < 0) return UNKNOWN;
    report->len = number("report-len", (unsigned)len);
    report->cec_present = report->cec_len = 0;
    return OK;
}

int nvmlDeviceGetConfComputeGpuCertificate(void *device, struct chains *chains) {
    char name[64];
    if (!chains) return INVALID;
    int code = of(device, "attestation-chain", name, sizeof name);
    if (code) return code;
    long len = answer(name, chains->attestation, sizeof chains->attestation);
    if (len < 0) return UNKNOWN;
    chains->attestation_len = number("chain-len", (unsigned)len);
    of(device, "device-chain", name, sizeof name);
    len = answer(name, chains->device, sizeof chains->device);
    if (len < 0) return UNKNOWN;
    chains->device_len = (unsigned)len;
    return OK;
}

/* Every state that was set, one digit each. */
int nvmlSystemSetConfComputeGpusReadyState(unsigned ready) {
    char path[4096];
    if (!running) return UNINITIALIZED;
    if (ready > 1) return INVALID;
    if (!number("feature", 1)) return NOT_SUPPORTED;
    /* Busy once. */
    snprintf(path, sizeof path, "%s/busy", SCENARIO);
    if (!unlink(path)) return UNKNOWN;
    snprintf(path, sizeof path, "%s/ready", SCENARIO);
    FILE *file = fopen(path, "ab");
    if (!file) return UNKNOWN;
    fprintf(file, "%u", ready);
    fclose(file);
    return OK;
}
#endif
