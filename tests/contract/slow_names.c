/* slow_names: LD_PRELOAD; name servers that swallow what they are asked: an answer takes
 * SLOW_NAMES_S seconds, and there is none. */
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *restrict name, const char *restrict service,
                const struct addrinfo *restrict hints, struct addrinfo **restrict out)
{
    static int (*real)(const char *, const char *, const struct addrinfo *,
                       struct addrinfo **);
    const char *s = getenv("SLOW_NAMES_S");

    if (s && name && strcmp(name, "vendor.invalid") == 0) {
        (void)sleep((unsigned)strtoul(s, NULL, 10));
        return EAI_AGAIN;
    }
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(name, service, hints, out);
}
