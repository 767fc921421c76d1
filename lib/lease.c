#include "redoubt/lease.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/public.h"

enum { READ_TRIES = 64 };

static uint64_t now_us(void)
{
    struct timespec t;

    /* Cannot fail with a clock that exists; if it did, no lease would be held. */
    if (clock_gettime(CLOCK_BOOTTIME, &t) != 0)
        return UINT64_MAX;
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

PUBLIC const struct redoubt_lease_page *redoubt_lease_map(int fd)
{
    struct stat st;
    const struct redoubt_lease_page *page;

    if (fstat(fd, &st) != 0)
        return NULL;
    if (!S_ISREG(st.st_mode) || st.st_size != REDOUBT_LEASE_BYTES) {
        errno = EPROTO;
        return NULL;
    }
    page = mmap(NULL, REDOUBT_LEASE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return NULL;
    if (page->magic != REDOUBT_LEASE_MAGIC || page->version != REDOUBT_LEASE_VERSION) {
        redoubt_lease_unmap(page);
        errno = EPROTO;
        return NULL;
    }
    return page;
}

PUBLIC void redoubt_lease_unmap(const struct redoubt_lease_page *page)
{
    if (page)
        (void)munmap((void *)(uintptr_t)page, REDOUBT_LEASE_BYTES);
}

/*
 * The deadline and the epoch that belong together; 0 if there is no lease.  The daemon
 * renews a few times a second, so a second try is rare and a 64th means that something is
 * wrong.
 */
static uint64_t deadline_of(const struct redoubt_lease_page *page, uint64_t *epoch)
{
    for (int i = 0; i < READ_TRIES; i++) {
        uint64_t deadline = atomic_load(&page->deadline_us);
        uint64_t e = atomic_load(&page->epoch);

        if (deadline == 0)
            return 0;
        if (deadline == atomic_load(&page->deadline_us)) {
            *epoch = e;
            return deadline;
        }
    }
    return 0;
}

PUBLIC bool redoubt_lease_held(const struct redoubt_lease_page *page, uint64_t *epoch)
{
    uint64_t e = 0;
    uint64_t deadline = page ? deadline_of(page, &e) : 0;

    if (deadline == 0 || now_us() >= deadline)
        return false;
    if (epoch)
        *epoch = e;
    return true;
}

PUBLIC uint32_t redoubt_lease_remaining_ms(const struct redoubt_lease_page *page)
{
    uint64_t epoch, deadline = page ? deadline_of(page, &epoch) : 0;
    uint64_t now = now_us();
    uint64_t ms = deadline > now ? (deadline - now) / 1000u : 0;

    return ms > UINT32_MAX ? UINT32_MAX : (uint32_t)ms;
}
