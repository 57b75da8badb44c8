/* Stands in for the libraries of CUDA where there is no GPU, so that ONNX Runtime's CUDA provider starts.

   Memory of the device is memory of the host, so copies are made; kernels are not run, so no result means
   anything. cuda_coverage.py adds an empty function for every other one that the provider asks for.
   What is told of the device is what an NVIDIA H100 or H200 says (compute capability 9.0). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAJOR = 9, MINOR = 0, PROCESSORS = 132, WARP = 32, THREADS = 1024, SHARED = 232448, BLOCK_SHARED = 49152 };
static const size_t MEMORY = (size_t)80 << 30;

/* The head of cudaDeviceProp (CUDA 13, driver_types.h); the rest of its 1,008 bytes is zeros. */
struct properties {
    char name[256], identifier[16], luid[8];
    unsigned node_mask;
    size_t memory, block_shared;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constants;
    int major, minor;
    size_t texture_alignment, pitch_alignment;
    int processors;
};

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemGetInfo(size_t *unused, size_t *all) { *unused = *all = MEMORY; return 0; }

int cudaGetDeviceProperties(struct properties *told, int device)
{
    memset(told, 0, 1008);
    strcpy(told->name, "none");
    told->memory = MEMORY;
    told->block_shared = BLOCK_SHARED;
    told->registers = told->constants = 65536;
    told->warp = WARP;
    told->threads = THREADS;
    for (int axis = 0; axis < 3; axis++) {
        told->block[axis] = THREADS;
        told->grid[axis] = 65535;
    }
    told->major = MAJOR;
    told->minor = MINOR;
    told->texture_alignment = 512;
    told->pitch_alignment = 32;
    told->processors = PROCESSORS;
    return 0;
}

/* The numbers are those of cudaDeviceAttr. */
int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 1: *value = THREADS; break;
    case 8: *value = BLOCK_SHARED; break;
    case 10: *value = WARP; break;
    case 16: *value = PROCESSORS; break;
    case 39: *value = 2 * THREADS; break;
    case 75: *value = MAJOR; break;
    case 76: *value = MINOR; break;
    case 97: *value = SHARED; break;
    default: *value = 0;
    }
    return 0;
}

int cudaMalloc(void **memory, size_t size)
{
    *memory = aligned_alloc(256, (size / 256 + 1) * 256);
    return *memory ? 0 : 2; /* cudaErrorMemoryAllocation */
}
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return 0; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { memset(to, value, size); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream)
{
    memcpy(to, from, size);
    return 0;
}
int cudaPointerGetAttributes(int *told, const void *memory)
{
    memset(told, 0, 32);
    told[0] = 2; /* cudaMemoryTypeDevice */
    return 0;
}

static int handle(void **made) { *made = calloc(1, 4096); return *made ? 0 : 2; }
int cublasCreate_v2(void **made) { return handle(made); }
int cublasLtCreate(void **made) { return handle(made); }
int cudnnCreate(void **made) { return handle(made); }
int cudaStreamCreate(void **made) { return handle(made); }
int cudaStreamCreateWithFlags(void **made, unsigned flags) { return handle(made); }
int cudaEventCreate(void **made) { return handle(made); }
int cudaEventCreateWithFlags(void **made, unsigned flags) { return handle(made); }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 2; return 0; }
size_t cudnnGetVersion(void) { return 91400; }

static const char *none(void) { return "none"; }
const char *cudaGetErrorString(int error) { return none(); }
const char *cudaGetErrorName(int error) { return none(); }
const char *cublasGetStatusString(int status) { return none(); }
const char *cublasGetStatusName(int status) { return none(); }
const char *cudnnGetErrorString(int status) { return none(); }

/* Each kernel that would be started is named on stderr. */
static struct { const void *host; const char *name; } kernels[1 << 17];
static int known;

void **__cudaRegisterFatBinary(void *binary)
{
    static void *registered;
    return &registered;
}
void __cudaRegisterFunction(void **binary, const void *host, char *device, const char *name)
{
    if (known < (int)(sizeof kernels / sizeof *kernels)) {
        kernels[known].host = host;
        kernels[known++].name = name;
    }
}
int __cudaGetKernel(const void **kernel, const void *host) { *kernel = host; return 0; }

static int started(const void *host)
{
    for (int place = 0; place < known; place++)
        if (kernels[place].host == host) {
            fprintf(stderr, "\nKERNEL %s\n", kernels[place].name);
            break;
        }
    return 0;
}
int cudaLaunchKernel(const void *host) { return started(host); }
int __cudaLaunchKernel(const void *host) { return started(host); }
int cudaLaunchCooperativeKernel(const void *host) { return started(host); }
int cudaLaunchKernelExC(const void *settings, const void *host) { return started(host); }
