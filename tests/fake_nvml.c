// A stand-in for NVML that a test builds as libnvidia-ml.so.1.
// Every query answers from its environment variable: a list that successive calls go through;
// unset is "Not Supported", "denied" is "Insufficient Permissions". The handle is the GPU's number.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6 };
typedef void *device;

static int answer(const char *name, device gpu, int *calls, unsigned long long *value) {
  char key[64] = "FAKE_", *text, *rest;
  unsigned long long values[16];
  int count = 0;
  strcat(key, name);
  strcat(key, (uintptr_t)gpu == 2 ? "_OTHER" : "");
  if (!(text = getenv(key))) return NOT_SUPPORTED;
  if (!strcmp(text, "denied")) return NO_PERMISSION;
  for (rest = text; *rest && count < 16; text = rest) values[count++] = strtoull(text, &rest, 10);
  *value = values[(*calls)++ % count];
  return OK;
}
#define ASK(NAME, TYPE, OUT) \
  static int calls; unsigned long long value = 0; \
  int status = answer(NAME, gpu, &calls, &value); \
  if (status == OK) *(OUT) = (TYPE)value; \
  return status;

int nvmlInitWithFlags(unsigned flags) { return getenv("FAKE_NO_DRIVER") ? 9 : OK; }
const char *nvmlErrorString(int status) { return "an error"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *gpu) {
  *gpu = (device)1;
  return index ? NOT_FOUND : OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device *gpu) {
  *gpu = (device)2;
  return strcmp(uuid, "GPU-0123-abcd") ? NOT_FOUND : OK;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device *gpu) {
  *gpu = (device)2;
  return strcmp(id, "0000:3b:00.0") ? NOT_FOUND : OK;
}
static int memory_clock(device gpu, unsigned *out) { ASK("MEMORY", unsigned, out) }
static int sm_clock(device gpu, unsigned *out) { ASK("SM", unsigned, out) }
int nvmlDeviceGetClockInfo(device gpu, int type, unsigned *out) {
  return type == 1 ? sm_clock(gpu, out) : type == 2 ? memory_clock(gpu, out) : NOT_SUPPORTED;
}
int nvmlDeviceGetPowerUsage(device gpu, unsigned *out) { ASK("POWER", unsigned, out) }
int nvmlDeviceGetTemperature(device gpu, int sensor, unsigned *out) { ASK("HEAT", unsigned, out) }
#ifdef NEW_NAME
int nvmlDeviceGetCurrentClocksEventReasons(device gpu, unsigned long long *out)
#else
int nvmlDeviceGetCurrentClocksThrottleReasons(device gpu, unsigned long long *out)
#endif
{ ASK("REASONS", unsigned long long, out) }
int nvmlDeviceGetTotalEnergyConsumption(device gpu, unsigned long long *out) {
  ASK("ENERGY", unsigned long long, out)
}
