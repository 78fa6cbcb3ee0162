/* A made-up libnvidia-ml: what the probe asks for, with the layouts of nvml.h.
   FAKE_NVML names a scenario, FAKE_NVML_PID the process on the GPU, FAKE_NVML_HANG a file that
   keeps a call from returning while it exists. -DOLD_DRIVER leaves out what drivers before 510 lack. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OK 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define GPU_IS_LOST 15

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } process_use;
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long ll; int i; } value;
typedef struct { unsigned field, scope; long long timestamp, latency; unsigned type; int ret; value v; } field_value;

static int use_calls;

static int scenario(const char *name) { const char *s = getenv("FAKE_NVML"); return s && strcmp(s, name) == 0; }
static unsigned number(void *h) { return (unsigned)(uintptr_t)h - 1; } /* 0, 1: GPUs; 100, 101: MIG instances */
static int instance(void *h) { return number(h) >= 100; }
static int lost(void *h) { return number(h) == 1 && scenario("lost_later") && use_calls > 6; }
static unsigned own_pid(void) { return (unsigned)atoi(getenv("FAKE_NVML_PID")); }

int nvmlInitWithFlags(unsigned flags) { use_calls = 0; return scenario("driver_not_loaded") ? 9 : OK; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "610.57", n); return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = scenario("no_gpu") ? 0 : scenario("lost_later") ? 2 : 1; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(uintptr_t)(i + 1); return OK; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **h) {
    *h = (void *)(uintptr_t)(uuid[strlen(uuid) - 1] - '0' + 1);
    return lost(*h) ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) {
    strncpy(s, instance(h) ? "MIG-fake-0" : "GPU-fake-0", n);
    s[9] = (char)('0' + number(h) % 100);
    return OK;
}
int nvmlDeviceGetName(void *h, char *s, unsigned n) {
    strncpy(s, scenario("unified") ? "NVIDIA GB10" : instance(h) ? "Fake A100 MIG 1g.5gb" : "Fake RTX", n);
    return lost(h) ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetMemoryInfo(void *h, memory_v1 *m) {
    if (scenario("unified")) return NOT_SUPPORTED;
    m->total = instance(h) ? 2000 : 8000; m->free = 6500; m->used = 1500; return OK;
}
int nvmlDeviceGetUtilizationRates(void *h, utilization *u) {
    const char *hang = getenv("FAKE_NVML_HANG");
    while (hang && access(hang, F_OK) == 0) usleep(1000);
    use_calls++;
    if (lost(h) || scenario("lost")) return GPU_IS_LOST;
    if (instance(h)) return NOT_SUPPORTED;
    u->gpu = 42; u->memory = 7; return OK;
}
int nvmlDeviceGetFieldValues(void *h, int n, field_value *f) {
    for (int i = 0; i < n; i++) {
        f[i].ret = OK;
        f[i].type = 3;
        switch (f[i].field) {
        case 186: f[i].type = 1; f[i].v.ui = 250500; if (scenario("average_power")) f[i].ret = NOT_SUPPORTED; break;
        case 185: f[i].type = 1; f[i].v.ui = 240000; break;
        case 74: f[i].v.ull = 5000000000ULL; break;
        case 269: f[i].v.ull = 40; break;
        case 270: f[i].v.ull = 2; break;
        default: f[i].ret = NOT_SUPPORTED;
        }
    }
    return lost(h) ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 200250; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *mw) { *mw = 350000; return OK; }
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *t) { *t = 55; return OK; }
int nvmlDeviceGetClockInfo(void *h, unsigned kind, unsigned *mhz) { *mhz = kind == 2 ? 10501 : 2520; return OK; }
int nvmlDeviceGetMaxClockInfo(void *h, unsigned kind, unsigned *mhz) { *mhz = 10501; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *mask) { *mask = 0x4; return OK; }
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2 *m) {
    if (scenario("unified")) return NOT_SUPPORTED;
    if (lost(h)) return GPU_IS_LOST;
    m->total = instance(h) ? 2000 : 8000; m->reserved = 500; m->free = 6500; m->used = 1000; return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) { *mj = 9000000000001ULL; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *mask) { *mask = 0x1 | 0x4 | 0x20; return OK; }
int nvmlDeviceGetMemoryBusWidth(void *h, unsigned *bits) { *bits = 384; return OK; }
int nvmlDeviceGetArchitecture(void *h, unsigned *a) { *a = 9; return OK; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { *major = 8; *minor = 9; return OK; }
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending) {
    *now = *pending = 1;
    return scenario("mig") ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *n) { *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned i, void **m) {
    *m = (void *)(uintptr_t)(101 + i);
    return i < 2 ? OK : NOT_FOUND;
}
int nvmlDeviceGetProcessUtilization(void *h, process_use *p, unsigned *n, unsigned long long since) {
    struct timespec now;
    if (scenario("idle")) { *n = 0; return OK; }
    if (!p) { *n = 1; return INSUFFICIENT_SIZE; }
    clock_gettime(CLOCK_REALTIME, &now);
    *n = 1; p[0].pid = own_pid(); p[0].time = now.tv_sec * 1000000ULL + now.tv_nsec / 1000; p[0].sm = 33;
    return OK;
}
#endif
static int processes(unsigned *n, process *p) {
    if (!p) { *n = 1; return INSUFFICIENT_SIZE; }
    *n = 1; p[0].pid = own_pid();
    p[0].used = scenario("wddm") ? ~0ULL : 600; p[0].gi = p[0].ci = ~0u;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process *p) { return processes(n, p); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, process *p) { *n = 0; return OK; }
