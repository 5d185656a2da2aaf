/* Everything that the AAR's x86_64 library needs from bionic, Android's C library, and glibc lacks.
 *
 * It is built as libbionic.so, preloaded into the JVM of the tests, and linked next to the library
 * as libc.so, libm.so, libdl.so and liblog.so, which the library asks for. Everything else comes
 * from glibc. The library's stdin, stdout and stderr are the three FILEs of __sF, of 152 bytes
 * each, which are translated wherever a FILE is passed in. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { BIONIC_FILE = 152 };

char __sF[3 * BIONIC_FILE];

static FILE *ours(FILE *stream) {
    char *place = (char *)stream;
    if (place == __sF) return stdin;
    if (place == __sF + BIONIC_FILE) return stdout;
    if (place == __sF + 2 * BIONIC_FILE) return stderr;
    return stream;
}

/* Returns the next function of this name after this library. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int vfprintf(FILE *stream, const char *format, va_list values) {
    return REAL(vfprintf)(ours(stream), format, values);
}

int fprintf(FILE *stream, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int written = vfprintf(stream, format, values);
    va_end(values);
    return written;
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    return REAL(fwrite)(data, size, count, ours(stream));
}

int fputc(int character, FILE *stream) { return REAL(fputc)(character, ours(stream)); }

int fputs(const char *text, FILE *stream) { return REAL(fputs)(text, ours(stream)); }

int fflush(FILE *stream) { return REAL(fflush)(ours(stream)); }

int fileno(FILE *stream) { return REAL(fileno)(ours(stream)); }

int *__errno(void) { return __errno_location(); }

size_t __strlen_chk(const char *text, size_t size) {
    (void)size;
    return strlen(text);
}

/* A device with Android 14. The library uses XNNPACK from API level 20 on, and not without one. */
int __system_property_get(const char *name, char *value) {
    const char *known = strcmp(name, "ro.build.version.sdk") == 0 ? "34" : "";
    strcpy(value, known);
    return (int)strlen(known);
}

void android_set_abort_message(const char *message) { fprintf(stderr, "%s\n", message); }

int __android_log_vprint(int priority, const char *tag, const char *format, va_list values) {
    (void)priority;
    fprintf(stderr, "%s: ", tag);
    int written = vfprintf(stderr, format, values);
    fputc('\n', stderr);
    return written;
}
