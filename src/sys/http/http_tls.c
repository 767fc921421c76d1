#include "sys/http/http_tls.h"

#include <gnutls/x509.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "base/str.h"
#include "sys/log/log.h"

enum { CHAIN_MAX = 8, PATH_BYTES = 256 };

/* A certificate and its key as they were at one time. */
struct pair {
    SLIST_ENTRY(pair) next;
    gnutls_pcert_st chain[CHAIN_MAX];
    unsigned count;
    gnutls_privkey_t key;
};

SLIST_HEAD(pairs, pair);

struct http_tls {
    char certificate[PATH_BYTES], key[PATH_BYTES];
    struct stat seen[2]; /* the files when they were last looked at */
    struct pairs all;    /* the present one first; handshakes may still use the others */
};

static bool same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static void pair_free(struct pair *p)
{
    for (unsigned i = 0; i < p->count; i++)
        gnutls_pcert_deinit(&p->chain[i]);
    gnutls_privkey_deinit(p->key);
    free(p);
}

/* Is the key the one of the certificate? */
static bool belong(const struct pair *p)
{
    unsigned char a[64], b[64];
    size_t na = sizeof(a), nb = sizeof(b);
    gnutls_pubkey_t public;

    if (gnutls_pubkey_init(&public) < 0)
        return false;
    bool ok = gnutls_pubkey_import_privkey(public, p->key, 0, 0) >= 0 &&
              gnutls_pubkey_get_key_id(public, GNUTLS_KEYID_USE_SHA256, a, &na) >= 0 &&
              gnutls_pubkey_get_key_id(p->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, b,
                                       &nb) >= 0 &&
              na == nb && memcmp(a, b, na) == 0;
    gnutls_pubkey_deinit(public);
    return ok;
}

static enum err read_pair(const struct http_tls *t, struct pair *p, struct err_info *info)
{
    gnutls_datum_t pem = { 0 };
    unsigned count = CHAIN_MAX;
    int r = gnutls_load_file(t->certificate, &pem);

    if (r >= 0)
        r = gnutls_pcert_list_import_x509_raw(p->chain, &count, &pem, GNUTLS_X509_FMT_PEM,
                                              GNUTLS_X509_CRT_LIST_FAIL_IF_UNSORTED);
    gnutls_free(pem.data);
    if (r < 0)
        return err_set(info, ERR_CONFIG, 0, "%s: %s", t->certificate, gnutls_strerror(r));
    p->count = count;
    pem = (gnutls_datum_t){ 0 };
    r = gnutls_load_file(t->key, &pem);
    if (r >= 0)
        r = gnutls_privkey_import_x509_raw(p->key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (pem.data)
        gnutls_memset(pem.data, 0, pem.size);
    gnutls_free(pem.data);
    if (r < 0)
        return err_set(info, ERR_CONFIG, 0, "%s: %s", t->key, gnutls_strerror(r));
    if (!belong(p))
        return err_set(info, ERR_CONFIG, 0, "%s is not the key of %s", t->key,
                       t->certificate);
    return ERR_OK;
}

static enum err load(struct http_tls *t, struct err_info *info)
{
    struct pair *p = calloc(1, sizeof(*p));

    if (!p || gnutls_privkey_init(&p->key) < 0) {
        free(p);
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    }
    enum err e = read_pair(t, p, info);
    if (e == ERR_OK)
        SLIST_INSERT_HEAD(&t->all, p, next);
    else
        pair_free(p);
    return e;
}

/* Have the files changed since the last look? */
static bool look(struct http_tls *t)
{
    struct stat now[2] = { 0 };

    if (stat(t->certificate, &now[0]) != 0 || stat(t->key, &now[1]) != 0 ||
        (same(&now[0], &t->seen[0]) && same(&now[1], &t->seen[1])))
        return false;
    memcpy(t->seen, now, sizeof(now));
    return true;
}

enum err http_tls_new(const char *certificate, const char *key, struct http_tls **out,
                      struct err_info *info)
{
    struct http_tls *t = calloc(1, sizeof(*t));
    enum err e;

    if (!t)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    SLIST_INIT(&t->all);
    if (!str_copy(t->certificate, sizeof(t->certificate), str_of(certificate)) ||
        !str_copy(t->key, sizeof(t->key), str_of(key))) {
        e = err_set(info, ERR_CONFIG, 0, "the path of a certificate or key is too long");
    } else {
        (void)look(t);
        e = load(t, info);
    }
    if (e == ERR_OK)
        *out = t;
    else
        http_tls_free(t);
    return e;
}

void http_tls_free(struct http_tls *t)
{
    struct pair *p;

    if (!t)
        return;
    while ((p = SLIST_FIRST(&t->all))) {
        SLIST_REMOVE_HEAD(&t->all, next);
        pair_free(p);
    }
    free(t);
}

void http_tls_present(struct http_tls *t, gnutls_pcert_st **chain, unsigned *count,
                      gnutls_privkey_t *key)
{
    struct err_info info = { .what = "" };

    if (look(t)) {
        if (load(t, &info) == ERR_OK)
            log_event(LOG_LEVEL_INFO, "certificate_changed",
                      log_str("path", t->certificate));
        else
            log_event(LOG_LEVEL_WARNING, "certificate_unusable",
                      log_str("why", info.what));
    }
    struct pair *p = SLIST_FIRST(&t->all);
    *chain = p->chain;
    *count = p->count;
    *key = p->key;
}
