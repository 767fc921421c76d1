#include "sys/guard/page.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum err lease_writer_init(struct lease_writer *w, struct err_info *info)
{
    enum err e = ERR_OK;
    struct redoubt_lease_page *page = MAP_FAILED;
    int fd = memfd_create("redoubt-lease", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return err_set(info, ERR_IO, errno, "create the lease page");
    if (ftruncate(fd, REDOUBT_LEASE_BYTES) != 0) {
        e = err_set(info, ERR_IO, errno, "size the lease page");
        goto out;
    }
    page = mmap(NULL, REDOUBT_LEASE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        e = err_set(info, ERR_IO, errno, "map the lease page");
        goto out;
    }
    page->version = REDOUBT_LEASE_VERSION;
    page->magic = REDOUBT_LEASE_MAGIC;
    if (fcntl(fd, F_ADD_SEALS,
              F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
        e = err_set(info, ERR_UNSUPPORTED, errno, "seal the lease page");
out:
    if (e) {
        if (page != MAP_FAILED)
            (void)munmap(page, REDOUBT_LEASE_BYTES);
        (void)close(fd);
        return e;
    }
    *w = (struct lease_writer){ .page = page, .fd = fd };
    return ERR_OK;
}

void lease_writer_release(struct lease_writer *w)
{
    if (!w->page)
        return;
    (void)munmap(w->page, REDOUBT_LEASE_BYTES);
    (void)close(w->fd);
    *w = (struct lease_writer){ .fd = -1 };
}

void lease_writer_extend(struct lease_writer *w, uint64_t epoch, struct mono deadline)
{
    CHECK(mono_is_set(deadline));
    if (atomic_load(&w->page->epoch) != epoch) {
        atomic_store(&w->page->deadline_us, 0);
        atomic_store(&w->page->epoch, epoch);
    }
    atomic_store(&w->page->deadline_us, deadline.us);
}

void lease_writer_revoke(struct lease_writer *w)
{
    atomic_store(&w->page->deadline_us, 0);
}
