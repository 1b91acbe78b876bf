/* Preloaded into a server on a GPU, fails or hangs a driver call once the file $FAULT_FILE exists: its content is the error's number, or `hang`.
 * The server loads the driver with dlsym, so dlsym is what is replaced. See failure.sh. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int call(void *);
static call *real_event_synchronize, *real_stream_synchronize;

static int fault(void) {
    const char *path = getenv("FAULT_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char what[16] = "";
    if (!file) return 0;
    if (!fgets(what, sizeof what, file)) what[0] = 0;
    fclose(file);
    if (!strncmp(what, "hang", 4)) for (;;) pause();
    return atoi(what);
}

static int event_synchronize(void *event) {
    int error = fault();
    return error ? error : real_event_synchronize(event);
}

static int stream_synchronize(void *stream) {
    int error = fault();
    return error ? error : real_stream_synchronize(stream);
}

void *dlsym(void *library, const char *name) {
    static void *(*real)(void *, const char *);
    if (!real) real = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    void *found = real(library, name);
    if (found && !strcmp(name, "cuEventSynchronize")) {
        real_event_synchronize = (call *)found;
        return (void *)event_synchronize;
    }
    if (found && !strcmp(name, "cuStreamSynchronize")) {
        real_stream_synchronize = (call *)found;
        return (void *)stream_synchronize;
    }
    return found;
}
