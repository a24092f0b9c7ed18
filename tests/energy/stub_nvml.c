/* A stand-in for NVIDIA's libnvidia-ml.so.1 with a known truth, for tests.
 *
 * STUB_NVML_CONFIG names a file of lines, read at nvmlInit (tests/conftest.py writes it):
 *
 *   clock real ZERO | clock file PATH     seconds of CLOCK_MONOTONIC from ZERO, or a double in PATH
 *   unix SECONDS                          unix time at 0 s, for time stamps
 *   log PATH                              where setter calls are appended, and limits are kept
 *   device UUID BUS NAME                  begins a device; the lines below belong to the last one
 *   wave PERIOD T:W T:W ...               true power, straight between the points; PERIOD 0: once
 *   sensor usage|instant|average PERIOD WINDOW PHASE NOISE_W
 *   counter PERIOD PHASE OFFSET_J
 *   gain FACTOR                           of all sensors of the device
 *   module W                              a superchip: what its other parts draw, which the counter
 *                                         and the fields of scope 1 include
 *   buffer                                nvmlDeviceGetSamples works
 *   cores N / clock_mhz N                 for CUDA's fastest-first order
 *   limit LOWEST_W HIGHEST_W NOW_W
 *   mig UUID                              a MIG device of the card
 *   hidden                                withheld by a cgroup
 *   fault FUNCTION KIND FROM_S TO_S       FUNCTION without "nvmlDevice"/"nvml"; * for all of these
 *   fault_at_call FUNCTION KIND FROM TO HANG_S   the same, by the number of the call, from 1, of this
 *                                         process to this device; TO is the first call spared again
 *
 * Kinds: not_supported lost unknown no_permission frozen reset hang garbage zero. -DNO_COUNTER builds
 * a library without the energy counter's symbol.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { USAGE, INSTANT, AVERAGE, SENSORS };
#define MAX_DEVICES 16
#define MAX_KNOTS 4096
#define MAX_FAULTS 32
#define MAX_MIG 8

struct sensor { int there; double period, window, phase, noise; };
struct fault {
    char function[48], kind[24];
    double from, to, hang;  /* seconds, or numbers of calls */
    int by_call, calls, on;
    double since;           /* when it began */
};
struct device {
    char uuid[96], bus[32], name[96], mig[MAX_MIG][96];
    int migs, hidden, buffer, knots, faults, cores, clock_mhz;
    double period, gain, module, lowest, highest, limit, counter_period, counter_phase, counter_offset;
    double t[MAX_KNOTS], w[MAX_KNOTS], e[MAX_KNOTS];
    struct sensor sensor[SENSORS];
    struct fault fault[MAX_FAULTS];
};
static struct device devices[MAX_DEVICES];
static struct { struct device *card; char *uuid; } mig_handles[MAX_DEVICES * MAX_MIG];
static int count, mig_count, ready, init_fault;
static double zero, unix_zero;
static volatile double *file_clock;
static char log_path[4096];

static double now(void) {
    struct timespec spec;
    if (file_clock) return *file_clock;
    clock_gettime(CLOCK_MONOTONIC, &spec);
    return spec.tv_sec + spec.tv_nsec * 1e-9 - zero;
}

/* Joules of the true power from 0 to t. */
static double within(struct device *d, double t) {
    int i = 0;
    if (t <= d->t[0]) return d->w[0] * (t - d->t[0]);
    while (i + 1 < d->knots && d->t[i + 1] <= t) i++;
    if (i + 1 == d->knots) return d->e[i] + d->w[i] * (t - d->t[i]);
    double dt = t - d->t[i], slope = (d->w[i + 1] - d->w[i]) / (d->t[i + 1] - d->t[i]);
    return d->e[i] + d->w[i] * dt + slope * dt * dt / 2;
}
static double energy(struct device *d, double t) {
    if (d->period <= 0) return within(d, t);
    double turns = floor(t / d->period);
    return turns * (within(d, d->period) - within(d, 0)) + within(d, t - turns * d->period);
}

static double noise(double tick, double most) {  /* the same for the same tick */
    double x = sin(tick * 12.9898 + 4.1414) * 43758.5453;
    return most * (2 * (x - floor(x)) - 1);
}
static double tick_of(double t, double period, double phase) {
    return floor((t - phase) / period + 1e-9) * period + phase;
}
static double sensed(struct device *d, int kind, double t) {
    struct sensor *s = &d->sensor[kind];
    double tick = tick_of(t, s->period, s->phase);
    double watts = (energy(d, tick) - energy(d, tick - s->window)) / s->window;
    watts = d->gain * watts + noise(tick, s->noise);
    return watts > 0 ? watts : 0.001;
}

/* Applies what is scripted for a call at this moment: a status to return, or a change of *t. */
static int disturbed(struct device *d, const char *function, double *t, char *kind) {
    struct fault *struck[MAX_FAULTS];
    int strikes = 0;
    kind[0] = 0;
    *t = now();
    for (int i = 0; i < d->faults; i++) {  /* each counts its calls, whatever the others do */
        struct fault *f = &d->fault[i];
        if (strcmp(f->function, "*") && strcmp(f->function, function)) continue;
        double at = f->by_call ? ++f->calls : *t;
        if (at < f->from) continue;
        if (!f->on) f->since = f->by_call ? *t : f->from;
        f->on = 1;
        if (at < f->to || !strcmp(f->kind, "reset")) struck[strikes++] = f;  /* a reset stays */
    }
    for (int i = 0; i < strikes; i++) {
        struct fault *f = struck[i];
        if (!strcmp(f->kind, "reset")) { strcpy(kind, "reset"); continue; }
        if (!strcmp(f->kind, "not_supported")) return NOT_SUPPORTED;
        if (!strcmp(f->kind, "lost")) return GPU_IS_LOST;
        if (!strcmp(f->kind, "unknown")) return UNKNOWN;
        if (!strcmp(f->kind, "no_permission")) return NO_PERMISSION;
        if (!strcmp(f->kind, "frozen")) { *t = f->since; continue; }
        if (!strcmp(f->kind, "hang")) {
            usleep((f->by_call ? f->hang : f->to - *t) * 1e6);
            *t = now();
            continue;
        }
        strcpy(kind, f->kind);
    }
    return SUCCESS;
}
static double reset_at(struct device *d) {
    for (int i = 0; i < d->faults; i++)
        if (!strcmp(d->fault[i].kind, "reset")) return d->fault[i].since;
    return 0;
}

static void read_config(FILE *file) {
    static char line[1 << 17], rest[1 << 17];
    struct device *d = NULL;
    memset(devices, 0, sizeof devices);
    count = mig_count = 0;
    file_clock = NULL;
    log_path[0] = 0;
    init_fault = SUCCESS;
    while (fgets(line, sizeof line, file)) {
        char word[32] = "", a[4096] = "", b[64] = "";
        if (sscanf(line, "%31s %4095s", word, a) < 1) continue;
        if (!strcmp(word, "clock")) {
            sscanf(line, "clock %63s %4095s", b, a);
            if (!strcmp(b, "real")) { zero = atof(a); continue; }
            int fd = open(a, O_RDONLY);
            file_clock = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
            close(fd);
        } else if (!strcmp(word, "unix")) unix_zero = atof(a);
        else if (!strcmp(word, "log")) strcpy(log_path, a);
        else if (!strcmp(word, "init_fails")) init_fault = DRIVER_NOT_LOADED;
        else if (!strcmp(word, "device")) {
            d = &devices[count++];
            d->gain = 1; d->lowest = 100; d->highest = d->limit = 300;
            d->cores = 5120; d->clock_mhz = 1500;
            sscanf(line, "device %95s %31s %95[^\n]", d->uuid, d->bus, d->name);
        } else if (!strcmp(word, "wave")) {
            strcpy(rest, line);
            char *save, *part = strtok_r(rest, " \n", &save);
            d->period = atof(strtok_r(NULL, " \n", &save));
            while ((part = strtok_r(NULL, " \n", &save)) && d->knots < MAX_KNOTS) {
                int i = d->knots++;
                sscanf(part, "%lf:%lf", &d->t[i], &d->w[i]);
                if (i) d->e[i] = d->e[i - 1] + (d->w[i] + d->w[i - 1]) / 2 * (d->t[i] - d->t[i - 1]);
            }
        } else if (!strcmp(word, "sensor")) {
            struct sensor *s = &d->sensor[a[0] == 'u' ? USAGE : a[0] == 'i' ? INSTANT : AVERAGE];
            s->there = 1;
            sscanf(line, "sensor %63s %lf %lf %lf %lf", b, &s->period, &s->window, &s->phase, &s->noise);
        } else if (!strcmp(word, "counter"))
            sscanf(line, "counter %lf %lf %lf", &d->counter_period, &d->counter_phase, &d->counter_offset);
        else if (!strcmp(word, "gain")) d->gain = atof(a);
        else if (!strcmp(word, "module")) d->module = atof(a);
        else if (!strcmp(word, "buffer")) d->buffer = 1;
        else if (!strcmp(word, "cores")) d->cores = atoi(a);
        else if (!strcmp(word, "clock_mhz")) d->clock_mhz = atoi(a);
        else if (!strcmp(word, "hidden")) d->hidden = 1;
        else if (!strcmp(word, "limit"))
            sscanf(line, "limit %lf %lf %lf", &d->lowest, &d->highest, &d->limit);
        else if (!strcmp(word, "mig")) {
            strcpy(d->mig[d->migs], a);
            mig_handles[mig_count].card = d;
            mig_handles[mig_count++].uuid = d->mig[d->migs++];
        } else if (!strcmp(word, "fault")) {
            struct fault *f = &d->fault[d->faults++];
            sscanf(line, "fault %47s %23s %lf %lf", f->function, f->kind, &f->from, &f->to);
        } else if (!strcmp(word, "fault_at_call")) {
            struct fault *f = &d->fault[d->faults++];
            f->by_call = 1;
            sscanf(line, "fault_at_call %47s %23s %lf %lf %lf", f->function, f->kind, &f->from, &f->to, &f->hang);
        }
    }
}

int nvmlInitWithFlags(unsigned flags) {
    if (ready) return SUCCESS;
    const char *path = getenv("STUB_NVML_CONFIG");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return DRIVER_NOT_LOADED;
    read_config(file);
    fclose(file);
    ready = init_fault == SUCCESS;
    return init_fault;
}
int nvmlShutdown(void) { ready = 0; return SUCCESS; }
const char *nvmlErrorString(int status) { return "an error of the stub driver"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "000.00 stub");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *out) { *out = count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out) {
    if (index >= (unsigned)count) return INVALID;
    if (devices[index].hidden) return NO_PERMISSION;
    *out = &devices[index];
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **out) {
    for (int i = 0; i < count; i++)
        if (!strcmp(uuid, devices[i].uuid)) {
            double t; char kind[24];
            int status = disturbed(&devices[i], "GetHandleByUUID", &t, kind);
            if (status) return status;
            if (devices[i].hidden) return NO_PERMISSION;
            *out = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    for (int i = 0; i < mig_count; i++)
        if (handle == &mig_handles[i]) { snprintf(text, length, "%s", mig_handles[i].uuid); return SUCCESS; }
    snprintf(text, length, "%s", ((struct device *)handle)->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(struct device *d, char *text, unsigned length) {
    snprintf(text, length, "%s", d->name);
    return SUCCESS;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(struct device *d, struct pci *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", d->bus);
    return SUCCESS;
}
int nvmlDeviceGetNumGpuCores(struct device *d, unsigned *out) { *out = d->cores; return SUCCESS; }
int nvmlDeviceGetMaxClockInfo(struct device *d, int type, unsigned *out) {
    *out = d->clock_mhz;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(struct device *d, unsigned *current, unsigned *pending) {
    *current = *pending = d->migs > 0;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *out) { *out = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, void **out) {
    if (index >= (unsigned)d->migs) return NOT_FOUND;
    for (int i = 0; i < mig_count; i++)
        if (mig_handles[i].uuid == d->mig[index]) *out = &mig_handles[i];
    return SUCCESS;
}

#ifndef NO_COUNTER
int nvmlDeviceGetTotalEnergyConsumption(struct device *d, unsigned long long *out) {
    double t; char kind[24];
    int status = disturbed(d, "GetTotalEnergyConsumption", &t, kind);
    if (status) return status;
    if (d->counter_period <= 0) return NOT_SUPPORTED;
    double tick = tick_of(t, d->counter_period, d->counter_phase);
    double joules = energy(d, tick) - energy(d, -1) + d->module * (tick + 1);
    if (!strcmp(kind, "reset"))
        joules -= energy(d, reset_at(d)) - energy(d, -1);
    else
        joules += d->counter_offset;
    if (!strcmp(kind, "garbage")) joules = fmod(t * 1e9, 7e9);
    if (!strcmp(kind, "zero") || joules < 0) joules = 0;
    *out = (unsigned long long)(d->gain * joules * 1000);
    return SUCCESS;
}
#endif
static int read_sensor(struct device *d, int sensor, double t, const char *kind, unsigned *out) {
    if (!d->sensor[sensor].there) return NOT_SUPPORTED;
    *out = (unsigned)(sensed(d, sensor, t) * 1000 + 0.5);
    if (!strcmp(kind, "garbage")) *out = 0xFFFFFFFFu;
    if (!strcmp(kind, "zero")) *out = 0;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(struct device *d, unsigned *out) {
    double t; char kind[24];
    int status = disturbed(d, "GetPowerUsage", &t, kind);
    return status ? status : read_sensor(d, USAGE, t, kind, out);
}
struct field { unsigned id, scope; long long stamp, latency; unsigned type; int status; union { unsigned ui; double d; } value; };
int nvmlDeviceGetFieldValues(struct device *d, int n, struct field *fields) {
    double t; char kind[24];
    int status = disturbed(d, "GetFieldValues", &t, kind);
    for (int i = 0; i < n; i++) {
        unsigned id = fields[i].id;
        fields[i].type = 1;
        fields[i].status = status ? status : INVALID;
        if (!status && (id == 185 || id == 186)) {
            fields[i].status = read_sensor(d, id == 185 ? AVERAGE : INSTANT, t, kind, &fields[i].value.ui);
            if (fields[i].scope == 1) fields[i].value.ui += d->module * 1000;
        }
    }
    return SUCCESS;
}
struct sample { unsigned long long stamp; union { unsigned ui; double d; } value; };
int nvmlDeviceGetSamples(struct device *d, int type, unsigned long long seen, unsigned *value_type, unsigned *n, struct sample *samples) {
    double t; char kind[24];
    int status = disturbed(d, "GetSamples", &t, kind), most = samples ? (int)*n : 120, found = 0;
    if (status) return status;
    if (!d->buffer || type != 0 || !d->sensor[USAGE].there) return NOT_SUPPORTED;
    struct sensor *s = &d->sensor[USAGE];
    double last = tick_of(t, s->period, s->phase);
    *value_type = 1;
    for (int k = 119; k >= 0 && found < most; k--) {
        double tick = last - k * s->period;
        unsigned long long stamp = (unsigned long long)((unix_zero + tick) * 1e6 + 0.5);
        if (tick < 0 || stamp <= seen) continue;
        if (samples) {
            samples[found].stamp = stamp;
            samples[found].value.ui = (unsigned)(sensed(d, USAGE, tick + s->period / 1000) * 1000 + 0.5);
        }
        found++;
    }
    *n = found;
    return SUCCESS;
}
struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(struct device *d, struct utilization *out) {
    double t; char kind[24];
    int status = disturbed(d, "GetUtilizationRates", &t, kind);
    out->gpu = 97; out->memory = 40;
    return status;
}
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *out) {
    double t; char kind[24];
    out->total = 32ull << 30; out->used = 3ull << 30; out->free = 29ull << 30;
    return disturbed(d, "GetMemoryInfo", &t, kind);
}
int nvmlDeviceGetClockInfo(struct device *d, int type, unsigned *out) {
    double t; char kind[24];
    *out = 1380;
    return disturbed(d, "GetClockInfo", &t, kind);
}
int nvmlDeviceGetTemperature(struct device *d, int type, unsigned *out) {
    double t; char kind[24];
    *out = 61;
    return disturbed(d, "GetTemperature", &t, kind);
}
int nvmlDeviceGetCurrentClocksEventReasons(struct device *d, unsigned long long *out) {
    double t; char kind[24];
    *out = 4;
    return disturbed(d, "GetCurrentClocksEventReasons", &t, kind);
}

static double limit_of(struct device *d) {  /* the last one set, by whichever process */
    FILE *file = log_path[0] ? fopen(log_path, "r") : NULL;
    char uuid[96]; double limit = d->limit; unsigned milliwatts; int pid;
    if (!file) return limit;
    while (fscanf(file, "set_power_limit %95s %u %d\n", uuid, &milliwatts, &pid) == 3)
        if (!strcmp(uuid, d->uuid)) limit = milliwatts / 1000.0;
    fclose(file);
    return limit;
}
int nvmlDeviceGetPowerManagementLimit(struct device *d, unsigned *out) {
    *out = (unsigned)(limit_of(d) * 1000 + 0.5);
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *out) {
    return nvmlDeviceGetPowerManagementLimit(d, out);
}
int nvmlDeviceGetPowerManagementLimitConstraints(struct device *d, unsigned *lowest, unsigned *highest) {
    *lowest = (unsigned)(d->lowest * 1000);
    *highest = (unsigned)(d->highest * 1000);
    return SUCCESS;
}
int nvmlDeviceSetPowerManagementLimit(struct device *d, unsigned milliwatts) {
    double t; char kind[24], line[160];
    int status = disturbed(d, "SetPowerManagementLimit", &t, kind);
    if (status) return status;
    if (milliwatts < d->lowest * 1000 || milliwatts > d->highest * 1000) return INVALID;
    int fd = open(log_path, O_WRONLY | O_APPEND | O_CREAT, 0666);
    int length = snprintf(line, sizeof line, "set_power_limit %s %u %d\n", d->uuid, milliwatts, getpid());
    if (write(fd, line, length) != length) status = UNKNOWN;
    close(fd);
    return status;
}
