#include "app/web/render.h"

enum { WORKER_CONNECTIONS = 4096, WORKER_FILES = 2 * WORKER_CONNECTIONS + 512 };

/* What may stand between quotation marks in nginx.conf without meaning anything there. */
static bool plain(const char *value)
{
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < ' ' || strchr("\"\\$;{}", *c))
            return false;
    return true;
}

enum err render_check(const struct nginx_conf *c, struct err_info *info)
{
    const char *const values[] = { c->node, c->http,    c->https,
                                   c->root, c->store,   c->certificate,
                                   c->key,  c->run_dir, c->link_key };

    for (size_t i = 0; i < LEN(values); i++)
        if (!plain(values[i]))
            return err_set(info, ERR_CONFIG, 0,
                           "\"%.80s\" holds a character that nginx.conf cannot take",
                           values[i]);
    if (!c->http[0] && !c->https[0])
        return err_set(info, ERR_CONFIG, 0,
                       "neither http nor https is to be listened on");
    if (c->https[0] && (!c->certificate[0] || !c->key[0]))
        return err_set(info, ERR_CONFIG, 0, "https needs a certificate and a key");
    if (c->root[0] != '/' || (c->store[0] && c->store[0] != '/'))
        return err_set(info, ERR_CONFIG, 0,
                       "root and store in [web] must be absolute paths");
    return ERR_OK;
}

/* For the test, Unix sockets stand in for the addresses: a standby node must not listen. */
static void listen_on(struct text *t, const struct nginx_conf *c, bool tls, bool test)
{
    const char *address = tls ? c->https : c->http, *options = tls ? " ssl" : "";

    if (test)
        text_add(t, "        listen \"unix:%s/test-%s.sock\"%s;\n", c->run_dir,
                 tls ? "https" : "http", options);
    else
        text_add(t, "        listen %s%s%s;\n", address, options,
                 strncmp(address, "[::]", 4) == 0 ? " ipv6only=off" : "");
}

/* A place with a header of its own has none of those around it. */
static void headers(struct text *t, const struct nginx_conf *c)
{
    text_add(t,
             "        add_header X-Redoubt-Node \"%s\" always;\n"
             "        add_header X-Content-Type-Options nosniff always;\n",
             c->node);
}

/* An answer in words, whatever the name that was asked for ends with. */
static void words(struct text *t, const char *name, unsigned status, const char *text)
{
    text_add(t,
             "        location %s {\n"
             "            types { }\n"
             "            default_type text/plain;\n"
             "            return %u \"%s\\n\";\n"
             "        }\n",
             name, status, text);
}

static void render_public(struct text *t, const struct nginx_conf *c, const char *place,
                          const char *more)
{
    text_add(t,
             "        location ^~ /%s/ {\n"
             "            root \"%s/current/public\";\n"
             "            error_page 403 404 =404 @absent;\n"
             "%s"
             "        }\n",
             place, c->store, more);
}

/* For stock freshclam: notes on what it takes each answer for are in docs/web.md. */
static void render_signatures(struct text *t, const struct nginx_conf *c)
{
    char buf[512];
    struct text more;

    text_init(&more, buf, sizeof(buf));
    text_add(&more, "            if_modified_since before;\n"
                    "            error_page 429 @slow;\n");
    if (c->sig_rate > 0)
        text_add(&more, "            limit_req zone=sig_rate burst=%u nodelay;\n",
                 c->sig_burst);
    if (c->sig_connections > 0)
        text_add(&more, "            limit_conn sig_connections %u;\n",
                 c->sig_connections);
    render_public(t, c, "sig", buf);
    text_add(t,
             "        location @slow {\n            add_header Retry-After %u always;\n",
             c->sig_retry_s);
    headers(t, c);
    text_add(
        t,
        "            types { }\n"
        "            default_type text/plain;\n"
        "            return 429 \"Too many requests from this address: come again in "
        "%u seconds.\\n\";\n"
        "        }\n",
        c->sig_retry_s);
}

/* Only with a link that redoubt-manager has made (sys/ca/ca_link.h), only over TLS. */
static void render_private(struct text *t, const struct nginx_conf *c, bool tls)
{
    if (!tls || !c->link_key[0]) {
        text_add(t, "        location ^~ /private/ { error_page 404 @private; "
                    "return 404; }\n");
    } else {
        text_add(t,
                 "        location ^~ /private/ {\n"
                 "            root \"%s/current\";\n"
                 "            secure_link $arg_md5,$arg_expires;\n"
                 "            secure_link_md5 \"%s$secure_link_expires $uri %s\";\n"
                 "            error_page 403 404 =404 @private;\n"
                 "            error_page 410 @expired;\n"
                 "            if ($secure_link = \"\") { return 404; }\n"
                 "            if ($secure_link = \"0\") { return 410; }\n"
                 "            add_header Cache-Control \"private, no-store\" always;\n",
                 c->store, c->link_key, c->link_key);
        headers(t, c);
        text_add(t, "        }\n");
    }
    words(
        t, "@private", 404,
        tls ? "There is nothing here, or the link is not complete: it must be used as it "
              "was given."
            : "There is nothing here: links work with https only.");
    words(
        t, "@expired", 410,
        "This link has expired. An operator makes a new one: redoubt package link NAME");
}

static void render_store(struct text *t, const struct nginx_conf *c, bool tls)
{
    if (!c->store[0])
        return;
    words(t, "@absent", 404, "Nothing is published under this name.");
    render_public(t, c, "packages", "");
    render_public(t, c, "install", "");
    render_public(t, c, "custom", "            if_modified_since before;\n");
    render_signatures(t, c);
    render_private(t, c, tls);
}

static void render_server(struct text *t, const struct nginx_conf *c, bool tls, bool test)
{
    text_add(t, "    server {\n");
    listen_on(t, c, tls, test);
    if (tls)
        text_add(t,
                 "        ssl_certificate \"%s\";\n"
                 "        ssl_certificate_key \"%s\";\n"
                 "        ssl_protocols TLSv1.2 TLSv1.3;\n"
                 "        ssl_session_tickets off;\n",
                 c->certificate, c->key);
    text_add(t, "        root \"%s\";\n", c->root);
    headers(t, c);
    text_add(t, "        location / { limit_except GET { deny all; } }\n"
                "        location ~ /\\. { return 404; }\n");
    render_store(t, c, tls);
    text_add(t, "    }\n");
}

static void render_limits(struct text *t, const struct nginx_conf *c)
{
    if (!c->store[0])
        return;
    /* A storm of refused requests must not become one of lines in the log. */
    text_add(t, "    limit_req_status 429;\n"
                "    limit_req_log_level info;\n"
                "    limit_conn_status 429;\n"
                "    limit_conn_log_level info;\n");
    if (c->sig_rate > 0)
        text_add(t,
                 "    limit_req_zone $binary_remote_addr zone=sig_rate:8m rate=%ur/s;\n",
                 c->sig_rate);
    if (c->sig_connections > 0)
        text_add(t, "    limit_conn_zone $binary_remote_addr zone=sig_connections:8m;\n");
}

static void render_http(struct text *t, const struct nginx_conf *c)
{
    static const char *const temporary[] = { "client_body", "proxy", "fastcgi", "uwsgi",
                                             "scgi" };

    /*
     * sendfile blocks while a disk is slow.  Threads for it (aio threads) cost a quarter of the
     * requests a second for small files, measured; so what one call may block for is bounded
     * instead, far below the time in which a health request must be answered.
     */
    text_add(t, "    access_log off;\n"
                "    log_not_found off;\n"
                "    server_tokens off;\n"
                "    default_type application/octet-stream;\n"
                "    types {\n"
                "        text/html html htm; text/plain txt; text/css css;\n"
                "        application/javascript js; application/json json;\n"
                "        image/svg+xml svg; image/png png;\n"
                "    }\n"
                "    sendfile on;\n"
                "    sendfile_max_chunk 2m;\n"
                "    tcp_nopush on;\n"
                "    absolute_redirect off;\n"
                "    keepalive_timeout 15s;\n"
                "    client_header_timeout 10s;\n"
                "    client_body_timeout 10s;\n"
                "    client_max_body_size 1k;\n");
    for (size_t i = 0; i < LEN(temporary); i++)
        text_add(t, "    %s_temp_path \"%s/tmp-%s\";\n", temporary[i], c->run_dir,
                 temporary[i]);
    render_limits(t, c);
}

void render(struct text *t, const struct nginx_conf *c, const char *health, bool test)
{
    text_add(t,
             "# Written by redoubt-web at each start; changes are lost.\n"
             "daemon off;\n"
             "master_process on;\n"
             "worker_processes %u;\n"
             "worker_rlimit_nofile %d;\n"
             "pid \"%s/nginx.pid\";\n"
             "error_log stderr warn;\n"
             "events { worker_connections %d; }\n"
             "http {\n",
             c->workers, WORKER_FILES, c->run_dir, WORKER_CONNECTIONS);
    render_http(t, c);
    if (c->http[0])
        render_server(t, c, false, test);
    if (c->https[0])
        render_server(t, c, true, test);
    text_add(t,
             "    server {\n"
             "        listen \"unix:%s%s\";\n"
             "        location / { return 204; }\n"
             "    }\n"
             "}\n",
             health, test ? ".test" : "");
}
