#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "sys/licence/licence.h"

enum err licence_anchor_load(const char *path, uint8_t out[LICENCE_KEY_BYTES],
                             struct err_info *info)
{
    char hex[2 * LICENCE_KEY_BYTES + 2];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno, "%s",
                       path);
    ssize_t n = read(fd, hex, sizeof(hex));
    int number = errno;
    (void)close(fd); /* read only */
    if (n < 0)
        return err_set(info, ERR_IO, number, "read %s", path);
    if (n == (ssize_t)sizeof(hex) - 1 && hex[n - 1] == '\n')
        n--;
    if (!hex_decode(out, LICENCE_KEY_BYTES, (struct str){ hex, (size_t)n }))
        return err_set(info, ERR_CONFIG, 0, "%s is not a public key (64 hex digits)",
                       path);
    return ERR_OK;
}
