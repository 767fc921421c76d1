#include "base/err.h"

#include <stdarg.h>

static const struct {
    const char *name;
    bool retry;
} err_table[ERR_COUNT] = {
#define X(code, text, again) [code] = { .name = text, .retry = again },
    ERR_MAP(X)
#undef X
};

const char *err_name(enum err e)
{
    return (unsigned)e < ERR_COUNT ? err_table[e].name : "unknown";
}

bool err_may_retry(enum err e)
{
    return (unsigned)e < ERR_COUNT && err_table[e].retry;
}

enum err err_set(struct err_info *info, enum err e, int sys_errno, const char *fmt, ...)
{
    va_list ap;

    if (!info)
        return e;
    info->sys_errno = sys_errno;
    va_start(ap, fmt);
    int n = vsnprintf(info->what, sizeof(info->what), fmt, ap);
    va_end(ap);
    if (sys_errno != 0 && n >= 0 && (size_t)n < sizeof(info->what)) {
        char text[96];
        /* GNU strerror_r: returns the text, which may or may not be in our buffer. */
        (void)snprintf(info->what + n, sizeof(info->what) - (size_t)n, ": %s",
                       strerror_r(sys_errno, text, sizeof(text)));
    }
    return e;
}
