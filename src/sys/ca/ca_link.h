/*
 * ca_link: links to what is not public, which end by themselves; and the pin of who serves it.
 *
 * Purpose   redoubt-manager makes them, nginx (secure_link) believes them, on either node.
 * Shape     PATH?md5=M&expires=S: S in Unix seconds, M is base64url without padding of the MD5
 *           of key S blank PATH blank key.  That is what nginx can check.
 * Safety    The key is before and behind what is hashed: nothing can be appended to a link
 *           that is known, and a collision of MD5 found beforehand is of no use.
 * Threads   any
 * Tests     tests/unit/test_ca.c, tests/fault/test_web.py
 */
#ifndef SYS_CA_LINK_H
#define SYS_CA_LINK_H

#include "base/err.h"
#include "base/str.h"

enum { CA_LINK_KEY = 65, CA_LINK_MAX = 512, CA_LINK_SECRET_MIN = 16 };

/* From the bytes of the file link.key to the text that is hashed.  ERR_CORRUPT: too short. */
MUST_USE enum err ca_link_key(struct str secret, char out[CA_LINK_KEY],
                              struct err_info *info);
/* ERR_LIMIT: the path is too long; ERR_IO: MD5 is not allowed on this computer. */
MUST_USE enum err ca_link_make(const char key[CA_LINK_KEY], const char *path,
                               int64_t expires, char out[CA_LINK_MAX],
                               struct err_info *info);

enum { CA_PIN = 64 };

/* "sha256//..." of a certificate's public key, as curl --pinnedpubkey takes it. */
MUST_USE enum err ca_pin(struct str certificate, char out[CA_PIN], struct err_info *info);

#endif
