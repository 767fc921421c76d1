#include "base/check.h"

void (*check_hook)(const char *expr, const char *file, int line);

_Noreturn void check_fail(const char *expr, const char *file, int line)
{
    if (check_hook)
        check_hook(expr, file, line);
    else
        fprintf(stderr, "BUG: %s:%d: %s does not hold\n", file, line, expr);
    abort();
}
