#include "sys/tls/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

enum { FILE_BYTES_MAX = 256 * 1024 };

/* TLS 1.2 and 1.3 with forward secrecy and AEAD only. */
static const char priorities[] =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA:-CIPHER-ALL:+AES-128-GCM:"
    "+AES-256-GCM:+CHACHA20-POLY1305";

/* What a device's certificate is for.  GnuTLS keeps the pointer, and does not write. */
static gnutls_typed_vdata_st device_purpose = {
    .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT
};

struct tls_creds {
    bool undated; /* client: the clock is wrong */
    enum tls_side side;
    gnutls_certificate_credentials_t x509;
    gnutls_priority_t priority;
    gnutls_datum_t ticket_key; /* server: seals the tickets */
    gnutls_datum_t ticket;     /* client: of the last session */
};

struct tls {
    struct tls_creds *creds; /* borrowed */
    gnutls_session_t session;
    bool stuck; /* a record waits in GnuTLS for room in the socket */
};

static enum err failed(struct err_info *info, enum err e, int code, const char *what)
{
    return err_set(info, e, 0, "%s: %s", what, gnutls_strerror(code));
}

static enum err load_files(struct tls_creds *c, const struct tls_files *f,
                           struct err_info *info)
{
    int n = gnutls_certificate_set_x509_trust_file(c->x509, f->ca, GNUTLS_X509_FMT_PEM);

    if (n <= 0)
        return err_set(info, ERR_CONFIG, 0, "no authority in %s: %s", f->ca,
                       n < 0 ? gnutls_strerror(n) : "no certificate in it");
    n = gnutls_certificate_set_x509_key_file(c->x509, f->certificate, f->key,
                                             GNUTLS_X509_FMT_PEM);
    if (n < 0)
        return err_set(info, ERR_CONFIG, 0, "certificate %s with key %s: %s",
                       f->certificate, f->key, gnutls_strerror(n));
    n = gnutls_priority_init(&c->priority, priorities, NULL);
    if (n < 0)
        return failed(info, ERR_UNSUPPORTED, n, "TLS ciphers");
    if (c->side == TLS_SERVER) {
        n = gnutls_session_ticket_key_generate(&c->ticket_key);
        if (n < 0)
            return failed(info, ERR_UNSUPPORTED, n, "TLS ticket key");
    }
    return ERR_OK;
}

enum err tls_creds_new(enum tls_side side, const struct tls_files *files,
                       struct tls_creds **out, struct err_info *info)
{
    struct tls_creds *c = calloc(1, sizeof(*c));

    if (!c)
        return err_set(info, ERR_MEMORY, ENOMEM, "TLS credentials");
    c->side = side;
    int n = gnutls_certificate_allocate_credentials(&c->x509);
    enum err e = n < 0 ? failed(info, ERR_MEMORY, n, "TLS credentials")
                       : load_files(c, files, info);
    if (e != ERR_OK) {
        tls_creds_free(c);
        return e;
    }
    *out = c;
    return ERR_OK;
}

void tls_creds_free(struct tls_creds *c)
{
    if (!c)
        return;
    if (c->x509)
        gnutls_certificate_free_credentials(c->x509);
    if (c->priority)
        gnutls_priority_deinit(c->priority);
    if (c->ticket_key.data)
        gnutls_memset(c->ticket_key.data, 0, c->ticket_key.size);
    gnutls_free(c->ticket_key.data);
    gnutls_free(c->ticket.data);
    free(c);
}

/* The device id among the subjectAltNames: exactly one urn:uuid: URI. */
static enum err device_of(gnutls_x509_crt_t crt, struct uuid *out)
{
    bool found = false;
    struct uuid id;

    for (unsigned i = 0; i < 64; i++) {
        char name[256];
        size_t n = sizeof(name);
        int type = gnutls_x509_crt_get_subject_alt_name(crt, i, name, &n, NULL);

        if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            break;
        struct str s = { name, n };
        struct str prefix = STR("urn:uuid:");
        if (type != GNUTLS_SAN_URI || n > sizeof(name) || !str_starts(s, prefix))
            continue;
        s = (struct str){ s.p + prefix.n, s.n - prefix.n };
        if (found || !uuid_parse(&id, s))
            return ERR_NOT_FOUND; /* two identities are none */
        found = true;
    }
    if (!found)
        return ERR_NOT_FOUND;
    *out = id;
    return ERR_OK;
}

static enum err device_of_bytes(const gnutls_datum_t *bytes, gnutls_x509_crt_fmt_t format,
                                struct uuid *out)
{
    gnutls_x509_crt_t crt;
    enum err e = ERR_CORRUPT;

    if (gnutls_x509_crt_init(&crt) < 0)
        return ERR_MEMORY;
    if (gnutls_x509_crt_import(crt, bytes, format) >= 0)
        e = device_of(crt, out);
    gnutls_x509_crt_deinit(crt);
    return e;
}

static enum err certificate_of(gnutls_x509_crt_t crt, struct tls_peer *out)
{
    uint8_t serial[(TLS_SERIAL - 1) / 2];
    size_t n = sizeof(serial), skip = 0;
    time_t end = gnutls_x509_crt_get_expiration_time(crt);

    if (end == (time_t)-1 || gnutls_x509_crt_get_serial(crt, serial, &n) < 0)
        return ERR_CORRUPT;
    while (skip + 1 < n && serial[skip] == 0)
        skip++;
    hex_encode(out->serial, serial + skip, n - skip);
    out->not_after = end;
    return ERR_OK;
}

static enum err key_of(gnutls_x509_crt_t crt, char out[TLS_KEY_HEX])
{
    uint8_t hash[TLS_DIGEST];
    size_t n = sizeof(hash);

    if (gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, hash, &n) < 0 ||
        n != sizeof(hash))
        return ERR_CORRUPT;
    hex_encode(out, hash, n);
    return ERR_OK;
}

enum err tls_der_device(const void *der, size_t size, struct tls_device *out)
{
    gnutls_datum_t bytes = { .data = (unsigned char *)(uintptr_t)der,
                             .size = (unsigned)size };
    struct tls_peer peer;
    gnutls_x509_crt_t crt;
    enum err e = ERR_CORRUPT;

    if (gnutls_x509_crt_init(&crt) < 0)
        return ERR_MEMORY;
    if (gnutls_x509_crt_import(crt, &bytes, GNUTLS_X509_FMT_DER) >= 0)
        e = device_of(crt, &out->id);
    if (e == ERR_OK)
        e = key_of(crt, out->key);
    if (e == ERR_OK)
        e = certificate_of(crt, &peer);
    if (e == ERR_OK)
        memcpy(out->serial, peer.serial, sizeof(out->serial));
    gnutls_x509_crt_deinit(crt);
    return e;
}

enum err tls_file_key(const char *certificate, char out[TLS_KEY_HEX],
                      struct err_info *info)
{
    gnutls_datum_t pem = { 0 };
    gnutls_x509_crt_t crt;
    int n = gnutls_load_file(certificate, &pem);
    enum err e = ERR_CORRUPT;

    if (n < 0)
        return err_set(info, ERR_CONFIG, 0, "read %s: %s", certificate,
                       gnutls_strerror(n));
    if (gnutls_x509_crt_init(&crt) < 0) {
        gnutls_free(pem.data);
        return ERR_MEMORY;
    }
    if (pem.size <= FILE_BYTES_MAX &&
        gnutls_x509_crt_import(crt, &pem, GNUTLS_X509_FMT_PEM) >= 0)
        e = key_of(crt, out);
    gnutls_x509_crt_deinit(crt);
    gnutls_free(pem.data);
    return e == ERR_OK ? e : err_set(info, e, 0, "%s is not a certificate", certificate);
}

enum err tls_file_device(const char *certificate, struct uuid *out, struct err_info *info)
{
    gnutls_datum_t pem = { 0 };
    int n = gnutls_load_file(certificate, &pem);

    if (n < 0)
        return err_set(info, ERR_CONFIG, 0, "read %s: %s", certificate,
                       gnutls_strerror(n));
    enum err e = pem.size > FILE_BYTES_MAX
                     ? ERR_LIMIT
                     : device_of_bytes(&pem, GNUTLS_X509_FMT_PEM, out);
    gnutls_free(pem.data);
    if (e == ERR_NOT_FOUND)
        return err_set(info, e, 0, "%s holds no subjectAltName urn:uuid:<device id>",
                       certificate);
    return e == ERR_OK ? e : err_set(info, e, 0, "%s is not a certificate", certificate);
}

static bool is_address(const char *name)
{
    unsigned char address[sizeof(struct in6_addr)];

    return inet_pton(AF_INET, name, address) == 1 ||
           inet_pton(AF_INET6, name, address) == 1;
}

void tls_creds_undated(struct tls_creds *c, bool undated)
{
    c->undated = undated;
}

static int setup(struct tls *t, int fd, const char *name)
{
    struct tls_creds *c = t->creds;
    int n = gnutls_priority_set(t->session, c->priority);

    if (n >= 0)
        n = gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, c->x509);
    if (n < 0)
        return n;
    gnutls_transport_set_int(t->session, fd);
    gnutls_handshake_set_timeout(t->session, GNUTLS_INDEFINITE_TIMEOUT); /* the loop's */
    if (c->side == TLS_SERVER) {
        gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUIRE);
        gnutls_session_set_verify_cert2(t->session, &device_purpose, 1, 0);
        return gnutls_session_ticket_enable_server(t->session, &c->ticket_key);
    }
    if (c->ticket.data) /* a ticket that is refused just costs a full handshake */
        (void)gnutls_session_set_data(t->session, c->ticket.data, c->ticket.size);
    gnutls_session_set_verify_cert(t->session, name,
                                   c->undated ? GNUTLS_VERIFY_DISABLE_TIME_CHECKS : 0);
    if (is_address(name)) /* RFC 6066: a server name is never an address */
        return 0;
    return gnutls_server_name_set(t->session, GNUTLS_NAME_DNS, name, strlen(name));
}

enum err tls_new(struct tls_creds *c, int fd, const char *name, struct tls **out,
                 struct err_info *info)
{
    unsigned flags = c->side == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT;
    struct tls *t = calloc(1, sizeof(*t));

    CHECK(c->side == TLS_SERVER || name);
    if (!t)
        return err_set(info, ERR_MEMORY, ENOMEM, "TLS session");
    t->creds = c;
    int n = gnutls_init(&t->session, flags | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
    if (n >= 0)
        n = setup(t, fd, name);
    if (n < 0) {
        tls_free(t);
        return failed(info, ERR_MEMORY, n, "TLS session");
    }
    *out = t;
    return ERR_OK;
}

void tls_free(struct tls *t)
{
    if (!t)
        return;
    if (t->session)
        gnutls_deinit(t->session);
    free(t);
}

/* What GnuTLS wants next; called at once, while errno is that of the socket. */
static enum tls_result verdict(struct tls *t, ssize_t n, struct err_info *info,
                               const char *what)
{
    int e = errno;

    if (n >= 0)
        return TLS_DONE;
    if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
        return gnutls_record_get_direction(t->session) ? TLS_WANT_WRITE : TLS_WANT_READ;
    if (n == GNUTLS_E_PREMATURE_TERMINATION)
        return TLS_CLOSED;
    if (n == GNUTLS_E_PULL_ERROR || n == GNUTLS_E_PUSH_ERROR)
        (void)err_set(info, ERR_IO, e, "%s", what);
    else if (n == GNUTLS_E_FATAL_ALERT_RECEIVED)
        (void)err_set(info, ERR_DENIED, 0, "%s: the other side refused: %s", what,
                      gnutls_alert_get_name(gnutls_alert_get(t->session)));
    else
        (void)failed(info, ERR_DENIED, (int)n, what);
    return TLS_FAILED;
}

/* Why a certificate did not verify, in words. */
static void certificate_words(struct tls *t, struct err_info *info)
{
    gnutls_datum_t text = { 0 };
    unsigned status = gnutls_session_get_verify_cert_status(t->session);

    if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) <
        0)
        return;
    (void)err_set(info, ERR_DENIED, 0, "certificate refused: %s", (char *)text.data);
    gnutls_free(text.data);
}

enum tls_result tls_handshake(struct tls *t, struct err_info *info)
{
    int n;

    do
        n = gnutls_handshake(t->session);
    while (n < 0 && n != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(n));
    enum tls_result r = verdict(t, n, info, "TLS handshake");
    if (n == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR || n == GNUTLS_E_CERTIFICATE_ERROR) {
        certificate_words(t, info);
        (void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
    } else if (r == TLS_FAILED && n != GNUTLS_E_FATAL_ALERT_RECEIVED) {
        (void)gnutls_alert_send_appropriate(t->session, n);
    }
    return r;
}

enum tls_result tls_read(struct tls *t, void *buf, size_t size, size_t *n,
                         struct err_info *info)
{
    ssize_t got = gnutls_record_recv(t->session, buf, size);

    if (got == 0)
        return TLS_CLOSED;
    if (got > 0)
        *n = (size_t)got;
    return verdict(t, got, info, "TLS read");
}

enum tls_result tls_write(struct tls *t, const void *buf, size_t size, size_t *n,
                          struct err_info *info)
{
    /* NULL goes on with the record that waits, and returns its size. */
    ssize_t put =
        gnutls_record_send(t->session, t->stuck ? NULL : buf, t->stuck ? 0 : size);

    t->stuck = put == GNUTLS_E_AGAIN || put == GNUTLS_E_INTERRUPTED;
    if (put >= 0)
        *n = (size_t)put;
    return verdict(t, put, info, "TLS write");
}

size_t tls_pending(const struct tls *t)
{
    return gnutls_record_check_pending(t->session);
}

void tls_bye(struct tls *t)
{
    (void)gnutls_bye(t->session, GNUTLS_SHUT_WR); /* best effort: it may not fit */
}

enum err tls_peer_device(struct tls *t, struct uuid *out)
{
    unsigned count = 0;
    const gnutls_datum_t *peers = gnutls_certificate_get_peers(t->session, &count);

    if (!peers || count == 0)
        return ERR_NOT_FOUND;
    return device_of_bytes(&peers[0], GNUTLS_X509_FMT_DER, out) == ERR_OK ? ERR_OK
                                                                          : ERR_NOT_FOUND;
}

enum err tls_peer_certificate(struct tls *t, struct tls_peer *out)
{
    unsigned count = 0;
    const gnutls_datum_t *peers = gnutls_certificate_get_peers(t->session, &count);
    gnutls_x509_crt_t crt;
    enum err e = ERR_CORRUPT;

    if (!peers || count == 0)
        return ERR_NOT_FOUND;
    if (gnutls_x509_crt_init(&crt) < 0)
        return ERR_MEMORY;
    if (gnutls_x509_crt_import(crt, &peers[0], GNUTLS_X509_FMT_DER) >= 0)
        e = certificate_of(crt, out);
    gnutls_x509_crt_deinit(crt);
    return e;
}

enum err tls_creds_ticket_key(struct tls_creds *c, const uint8_t key[TLS_TICKET_KEY],
                              struct err_info *info)
{
    CHECK(c->side == TLS_SERVER);
    if (c->ticket_key.size != TLS_TICKET_KEY)
        return err_set(info, ERR_UNSUPPORTED, 0, "TLS ticket keys of another size");
    memcpy(c->ticket_key.data, key, TLS_TICKET_KEY);
    return ERR_OK;
}

void tls_digest(uint8_t out[TLS_DIGEST], struct str bytes)
{
    CHECK(gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes.p, bytes.n, out) >= 0);
}

void tls_remember(struct tls *t)
{
    gnutls_datum_t data = { 0 };

    if (gnutls_session_get_data2(t->session, &data) < 0)
        return;
    gnutls_free(t->creds->ticket.data);
    t->creds->ticket = data;
}

bool tls_resumed(const struct tls *t)
{
    return gnutls_session_is_resumed(t->session) != 0;
}

void tls_ws_accept(char out[TLS_WS_ACCEPT], struct str key)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    char text[TLS_WS_KEY - 1 + sizeof(guid)];
    uint8_t digest[20];
    gnutls_datum_t in = { digest, sizeof(digest) }, base64 = { 0 };

    out[0] = '\0';
    if (key.n != TLS_WS_KEY - 1)
        return;
    memcpy(text, key.p, key.n);
    memcpy(text + key.n, guid, sizeof(guid));
    if (gnutls_hash_fast(GNUTLS_DIG_SHA1, text, key.n + sizeof(guid) - 1, digest) < 0 ||
        gnutls_base64_encode2(&in, &base64) < 0)
        return;
    if (!str_copy(out, TLS_WS_ACCEPT, (struct str){ (char *)base64.data, base64.size }))
        out[0] = '\0';
    gnutls_free(base64.data);
}

void tls_ws_key(char out[TLS_WS_KEY])
{
    uint8_t random[16];
    gnutls_datum_t in = { random, sizeof(random) }, base64 = { 0 };

    tls_random(random, sizeof(random));
    CHECK(gnutls_base64_encode2(&in, &base64) >= 0);
    CHECK(str_copy(out, TLS_WS_KEY, (struct str){ (char *)base64.data, base64.size }));
    gnutls_free(base64.data);
}

void tls_random(void *out, size_t n)
{
    CHECK(gnutls_rnd(GNUTLS_RND_NONCE, out, n) >= 0);
}
