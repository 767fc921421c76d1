/*
 * cvd_sign: the digital signatures of ClamAV's databases.
 *
 * Purpose   Verifies with the public keys of ClamAV's makers (Talos), which every engine
 *           carries in its code, too; so a node needs no engine to know what is genuine.
 * Shape     A signature is a number in 64 digits of its own alphabet, the lowest first.
 *           Databases: RSA of the MD5, without padding.  Increments: RSA-PSS with SHA-256.
 * Threads   any
 * Source    libclamav/dsig.c (what it does), keys as published with ClamAV 0.90 to 1.4
 */
#ifndef SYS_CVD_SIGN_H
#define SYS_CVD_SIGN_H

#include "base/err.h"
#include "base/str.h"

bool cvd_sign_md5(struct str sign, const uint8_t md5[16]);
bool cvd_sign_sha256(struct str sign, const uint8_t sha256[32]);

#endif
