#include "app/manager/enrol.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <unistd.h>

#include "app/manager/api.h"
#include "sys/ca/ca.h"
#include "sys/log/log.h"

enum {
    SIGN_MOST = 32, /* certificates in one transaction */
    RETRY_S = 30,   /* a device that waits for an administrator asks this often */
    HEX_BYTES = 2 * CA_HASH_BYTES + 1,
    NAME_MAX_BYTES = 200
};

struct enrol {
    struct ca *ca; /* NULL: there is none on this node (yet) */
    struct ca_pem certificate;
    char digest[CA_DIGEST];
    bool told;    /* the DBMS knows the authority */
    bool signing; /* a query of the queue is under way */
    bool again;   /* poked meanwhile */
};

/* --- the authority -------------------------------------------------------------------- */

static enum err read_secret(const struct manager *m, const char *name, struct ca_pem *out,
                            struct err_info *info)
{
    char path[CONF_PATH + 16];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/%s", m->conf.trust.folder, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s",
                       path);
    ssize_t n = read(fd, out->text, sizeof(out->text) - 1);
    int number = errno;
    (void)close(fd); /* read only */
    if (n < 0)
        return err_set(info, ERR_IO, number, "read %s", path);
    out->n = (size_t)n;
    out->text[n] = '\0';
    return ERR_OK;
}

static enum err load_authority(struct manager *m, struct err_info *info)
{
    struct enrol *n = m->enrol;
    struct ca_pem key = { 0 };
    enum err e = read_secret(m, "ca.pem", &n->certificate, info);

    if (e == ERR_OK)
        e = read_secret(m, "ca.key", &key, info);
    if (e == ERR_OK)
        e = ca_digest(ca_pem_str(&n->certificate), n->digest, info);
    if (e == ERR_OK)
        e = ca_load(ca_pem_str(&n->certificate), ca_pem_str(&key), &n->ca, info);
    ca_pem_wipe(&key);
    return e;
}

enum err enrol_start(struct manager *m, struct err_info *info)
{
    struct err_info why = { .what = "" };

    m->enrol = calloc(1, sizeof(*m->enrol));
    if (!m->enrol)
        return err_set(info, ERR_MEMORY, ENOMEM, "enrolment");
    enum err e = load_authority(m, &why);
    if (e == ERR_OK || e == ERR_NOT_FOUND)
        return ERR_OK; /* none: said when the node is active */
    return err_set(info, ERR_CONFIG, 0, "[trust] folder: %.220s", why.what);
}

void enrol_stop(struct manager *m)
{
    if (!m->enrol)
        return;
    ca_free(m->enrol->ca);
    free(m->enrol);
    m->enrol = NULL;
}

struct str enrol_authority(const struct manager *m)
{
    return ca_pem_str(&m->enrol->certificate);
}

static void hex_hash(const char *bytes, size_t n, char out[HEX_BYTES])
{
    uint8_t hash[CA_HASH_BYTES];

    (void)crypto_hash_sha256(hash, (const unsigned char *)bytes, n); /* cannot fail */
    hex_encode(out, hash, sizeof(hash));
}

/* --- signing -------------------------------------------------------------------------- */

/* What redoubt.signing_done takes for one request; NULL: out of memory. */
static json_t *sign(const struct manager *m, const char *request, const char *device,
                    const char *csr)
{
    struct err_info why = { .what = "" };
    struct ca_issued *out = calloc(1, sizeof(*out));
    struct ca_csr *r = NULL;
    char hash[HEX_BYTES];
    struct uuid id;
    json_t *j = NULL;

    if (!out)
        return NULL;
    enum err e = uuid_parse(&id, str_of(device)) ? ca_csr_check(str_of(csr), &r, &why)
                                                 : ERR_INVALID;
    if (e == ERR_OK)
        e = ca_sign_device(m->enrol->ca, r, &id, m->conf.trust.device_days, out, &why);
    hex_hash(csr, strlen(csr), hash);
    if (e == ERR_OK)
        j = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "id", request, "csr_hash", hash,
                      "serial", out->serial, "not_before", (json_int_t)out->not_before,
                      "not_after", (json_int_t)out->not_after, "pem", out->pem.text);
    else if (e != ERR_MEMORY)
        j = json_pack("{s:s, s:s}", "id", request, "refused", why.what);
    ca_csr_free(r);
    free(out);
    return j;
}

static void queue_ended(struct manager *m)
{
    m->enrol->signing = false;
    if (m->enrol->again) {
        m->enrol->again = false;
        enrol_poke(m);
    }
}

static void queue_failed(struct manager *m, enum err e, const struct err_info *why)
{
    if (e != ERR_STALE)
        log_event(LOG_LEVEL_WARNING, "signing_failed", log_str("why", why->what));
    m->enrol->signing = false;
    m->enrol->again = false; /* the next second tries again */
}

static void on_done(void *ctx, enum err e, const PGresult *r, const struct err_info *why)
{
    struct manager *m = ctx;

    (void)r;
    if (e != ERR_OK)
        queue_failed(m, e, why);
    else
        queue_ended(m);
}

static void on_pending(void *ctx, enum err e, const PGresult *r,
                       const struct err_info *why)
{
    struct manager *m = ctx;
    struct err_info info = { .what = "out of memory" };
    json_t *done = json_array();

    if (e != ERR_OK || !manager_may_answer(m)) {
        json_decref(done);
        queue_failed(m, e == ERR_OK ? ERR_STALE : e, why);
        return;
    }
    int count = PQntuples(r);
    for (int i = 0; i < count; i++) /* out of memory: those that fit */
        (void)json_array_append_new(
            done, sign(m, PQgetvalue(r, i, 0), PQgetvalue(r, i, 1), PQgetvalue(r, i, 2)));
    char *text = count > 0 ? json_dumps(done, JSON_COMPACT) : NULL;
    json_decref(done);
    if (count == 0) {
        queue_ended(m);
        return;
    }
    m->enrol->again = m->enrol->again || count == SIGN_MOST;
    e = text ? pool_query(m->pool, "SELECT redoubt.signing_done($1)", 1,
                          (const char *[]){ text }, on_done, m, &info)
             : ERR_MEMORY;
    free(text);
    if (e != ERR_OK)
        queue_failed(m, e, &info);
    else
        log_event(LOG_LEVEL_INFO, "signed", log_u64("certificates", (uint64_t)count));
}

static void on_told(void *ctx, enum err e, const PGresult *r, const struct err_info *why)
{
    struct manager *m = ctx;

    (void)r;
    if (e != ERR_OK) {
        queue_failed(m, e, why);
        return;
    }
    m->enrol->told = true;
    m->enrol->again = true;
    queue_ended(m);
}

void enrol_poke(struct manager *m)
{
    struct err_info info = { .what = "" };
    struct enrol *n = m->enrol;
    const char *authority[] = { n->certificate.text, n->digest };
    const char *most[] = { "32" };
    enum err e;

    static_assert(SIGN_MOST == 32, "as the text says");
    if (!n->ca)
        return;
    if (n->signing) {
        n->again = true;
        return;
    }
    if (n->told)
        e = pool_query(m->pool,
                       "SELECT id, device_id, csr FROM redoubt.signing_pending($1)",
                       LEN(most), most, on_pending, m, &info);
    else
        e = pool_query(m->pool, "SELECT redoubt.authority_set($1, $2)", LEN(authority),
                       authority, on_told, m, &info);
    n->signing = e == ERR_OK;
}

void enrol_active(struct manager *m)
{
    struct err_info why = { .what = "" };

    m->enrol->told = m->enrol->signing = m->enrol->again = false;
    if (!m->enrol->ca && load_authority(m, &why) != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "no_authority", log_str("why", why.what),
                  log_str("advice", "redoubt init or redoubt secret fetch"));
    enrol_poke(m);
}

void enrol_standby(struct manager *m)
{
    m->enrol->told = m->enrol->signing = m->enrol->again = false;
}

/* --- POST /v1/enrol ------------------------------------------------------------------- */

static void refuse(struct asked *a, unsigned status, const char *id, const char *title,
                   const char *text, const char *suggestion)
{
    api_refuse(a, status, &(struct http_error){ id, title, text, suggestion });
}

static void no_authority(struct asked *a)
{
    refuse(a, 503, "no_authority", "There is no certificate authority",
           "The keys of the authority are not installed on this node.",
           "Run redoubt secret fetch on it.");
}

/* Where devices find the servers; empty: where they asked. */
static json_t *servers(const struct manager *m)
{
    char text[CONF_PATH + 16];
    json_t *list = json_array();

    if (conf_address_of(&m->conf, m->conf.server.listen, text, sizeof(text)))
        (void)json_array_append_new(list, json_string(text));
    return list;
}

static void answer_issued(struct asked *a, const char *device, const char *pem)
{
    api_answer_json(a, 200,
                    json_pack("{s:s, s:s, s:s, s:s, s:o}", "state", "issued", "device",
                              device, "certificate", pem, "ca",
                              a->m->enrol->certificate.text, "servers", servers(a->m)));
}

static void answer_pending(struct asked *a, int seconds)
{
    api_answer_json(a, 202,
                    json_pack("{s:s, s:i}", "state", "pending", "retry_s", seconds));
}

/* The first column of the first row as JSON; NULL if it is none. */
static json_t *json_of(const PGresult *r)
{
    return r && PQntuples(r) == 1 ? json_loads(PQgetvalue(r, 0, 0), 0, NULL) : NULL;
}

/* own: {"id", "device"} of the request that was signed; taken over. */
static void on_signed(void *ctx, enum err e, const PGresult *r,
                      const struct err_info *why)
{
    struct asked *a = ctx;
    json_t *own = a->own, *stored = json_of(r);
    const char *pem, *id = json_string_value(json_object_get(own, "id"));

    a->own = NULL;
    if (e != ERR_OK) {
        api_fail(a, e, r, why);
    } else if ((pem = json_string_value(json_object_get(stored, id ? id : "")))) {
        log_event(LOG_LEVEL_INFO, "enrolled",
                  log_str("device", json_string_value(json_object_get(own, "device"))),
                  log_str("address", a->address));
        answer_issued(a, json_string_value(json_object_get(own, "device")), pem);
    } else {
        answer_pending(a, 1); /* refused, or changed meanwhile: the next answer tells */
    }
    json_decref(stored);
    json_decref(own);
}

static void sign_now(struct asked *a, const json_t *request)
{
    const char *id = json_string_value(json_object_get(request, "id"));
    const char *device = json_string_value(json_object_get(request, "device"));
    const char *csr = json_string_value(json_object_get(request, "csr"));
    json_t *one = id && device && csr ? sign(a->m, id, device, csr) : NULL;
    json_t *list = one ? json_pack("[o]", one) : NULL;
    char *text = list ? json_dumps(list, JSON_COMPACT) : NULL;

    json_decref(list);
    a->own = json_pack("{s:s, s:s}", "id", id ? id : "", "device", device ? device : "");
    if (!text || !a->own) {
        json_decref(a->own);
        a->own = NULL;
        answer_pending(a, 1); /* it is in the queue, too */
    } else {
        json_t *own = a->own;

        if (!api_sql(a, "SELECT redoubt.signing_done($1)", 1, (const char *[]){ text },
                     on_signed))
            json_decref(own); /* the request is answered and gone */
    }
    free(text);
}

static void on_enrolled(void *ctx, enum err e, const PGresult *r,
                        const struct err_info *why)
{
    struct asked *a = ctx;
    json_t *told = json_of(r);
    const char *state = json_string_value(json_object_get(told, "state"));
    const char *pem = json_string_value(json_object_get(told, "pem"));
    const char *device = json_string_value(json_object_get(told, "device"));

    if (e != ERR_OK)
        api_fail(a, e, r, why);
    else if (!state || !device)
        refuse(a, 500, "internal", "The server failed", "The DBMS answered nonsense.",
               "");
    else if (strcmp(state, "issued") == 0 && pem)
        answer_issued(a, device, pem);
    else if (strcmp(state, "approved") == 0)
        sign_now(a, told);
    else
        answer_pending(a, RETRY_S);
    json_decref(told);
}

/* rdt1.<id>.<secret>.<digest of the authority> */
struct token {
    char id[64], secret[HEX_BYTES], digest[CA_DIGEST];
};

static bool token_parse(const char *text, struct token *out)
{
    struct str pieces[4];
    size_t n = 0;

    for (const char *p = text; n < LEN(pieces); n++) {
        size_t piece = strcspn(p, ".");

        pieces[n] = (struct str){ p, piece };
        p += piece;
        if (*p == '\0') {
            n++;
            break;
        }
        p++;
        if (n + 1 == LEN(pieces))
            return false;
    }
    if (n != LEN(pieces) || !str_is(pieces[0], "rdt1") ||
        !str_copy(out->id, sizeof(out->id), pieces[1]) || pieces[2].n < 16 ||
        pieces[2].n > 256 || !str_copy(out->digest, sizeof(out->digest), pieces[3]))
        return false;
    hex_hash(pieces[2].p, pieces[2].n, out->secret);
    return true;
}

/* The request's key as hex; false: it was answered. */
static bool csr_key(struct asked *a, const char *csr, char out[HEX_BYTES])
{
    struct err_info why = { .what = "" };
    uint8_t hash[CA_HASH_BYTES];
    struct ca_csr *r = NULL;
    enum err e = ca_csr_check(str_of(csr), &r, &why);

    if (e == ERR_OK)
        e = ca_csr_key_hash(r, hash, &why);
    ca_csr_free(r);
    if (e != ERR_OK) {
        refuse(a, 400, "csr_wrong", "The signing request is refused", why.what,
               "It must be PKCS #10 in PEM, of an ECDSA P-256 key, signed by that key.");
        return false;
    }
    hex_encode(out, hash, sizeof(hash));
    return true;
}

static bool name_ok(const char *name)
{
    size_t n = strlen(name);

    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    }
    return n <= NAME_MAX_BYTES;
}

void enrol_post(struct asked *a)
{
    const char *token = json_string_value(json_object_get(a->body, "token"));
    const char *csr = json_string_value(json_object_get(a->body, "csr"));
    const json_t *named = json_object_get(a->body, "name");
    const char *name = named ? json_string_value(named) : "";
    char key[HEX_BYTES];
    struct token t;

    if (!a->m->enrol->ca) {
        no_authority(a);
        return;
    }
    if (!token || !csr || !name || !name_ok(name)) {
        refuse(
            a, 400, "invalid", "The body is wrong",
            "token and csr must be texts; name may be one, of at most 200 bytes without "
            "control characters.",
            "");
        return;
    }
    if (!token_parse(token, &t)) {
        refuse(a, 403, "token_unknown", "The token is not known",
               "An enrolment token looks like rdt1.ID.SECRET.AUTHORITY.",
               "Copy it completely.");
        return;
    }
    if (strcmp(t.digest, a->m->enrol->digest) != 0) {
        refuse(a, 403, "token_foreign", "The token is of another cluster",
               "It names another certificate authority than the one of this server.",
               "Is the address of the server right?");
        return;
    }
    if (csr_key(a, csr, key))
        api_sql(a,
                "SELECT redoubt.enrol($1, decode($2, 'hex'), decode($3, 'hex'), $4, $5)",
                5, (const char *[]){ t.id, t.secret, key, csr, name },
                on_enrolled); /* it has answered if it failed */
}

void enrol_ca(struct asked *a)
{
    const struct enrol *n = a->m->enrol;

    if (!n->ca)
        no_authority(a);
    else
        api_answer_json(a, 200,
                        json_pack("{s:s, s:s}", "certificate", n->certificate.text,
                                  "digest", n->digest));
}
