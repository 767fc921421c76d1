#include "app/agent/enrol.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "app/agent/enrol_conf.h"
#include "app/agent/enrol_file.h"
#include "app/agent/identity_files.h"
#include "sys/http/http_client.h"

enum {
    EXIT_PENDING = 75, /* EX_TEMPFAIL: ask again later */
    EXIT_USAGE = 64,
    API_PORT = 13299,
    SERVER_PORT = 13000,
    CALL_MS = 15000,
    RETRY_MAX_S = 60
};

static const char usage[] =
    "Usage: redoubt-agent enrol --server HOST[:PORT] --token TOKEN [OPTION]...\n"
    "       redoubt-agent enrol --from FILE [OPTION]...\n"
    "\n"
    "Gives this device its identity: makes a key, asks the Administration Server for a\n"
    "certificate, and stores both where agent.conf says. An administrator makes the\n"
    "token: redoubt token create.\n"
    "\n"
    "  -s, --server HOST   the address of the cluster; the port, if it is not 13299\n"
    "  -t, --token TOKEN   the enrolment token; - reads it from standard input\n"
    "  -f, --from FILE     server, token and authority, as redoubt package agent puts\n"
    "                      them into an installer; removed when the device is enrolled\n"
    "  -N, --name NAME     the name of the device (default: its host name)\n"
    "  -w, --wait          wait until the server answers and an administrator has\n"
    "                      approved it\n"
    "      --again         begin with a new key, even if the device is enrolled\n"
    "  -c, --config FILE   agent.conf, made if missing (default: " CONF_AGENT_DEFAULT_PATH
    ")\n"
    "  -j, --json          answer as JSON\n"
    "  -h, --help          print this text\n"
    "\n"
    "Exit codes: 0 enrolled, 1 failure, 64 wrong usage, 75 waits for approval.\n";

struct enrol {
    const char *conf_path, *server, *name, *from;
    char token[ENROL_TOKEN_MAX], digest[CA_DIGEST];
    struct enrol_file file;
    bool wait, again, json;
    struct utsname machine;
    char host[CONF_PATH], api[CONF_PATH + 16]; /* api: host:port */
    struct agent_conf conf;
    char pending_key[CONF_PATH + 8], pending_ca[CONF_PATH + 8];
    struct ca_pem key, csr, ca;
};

/* --- words ------------------------------------------------------------------------------ */

static int complain(const struct enrol *n, const char *id, const char *text,
                    const char *suggestion)
{
    if (n->json) {
        json_t *j = json_pack("{s:{s:s, s:s, s:s}}", "error", "id", id, "text", text,
                              "suggestion", suggestion);

        (void)json_dumpf(j, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(j);
    } else {
        fprintf(stderr, "redoubt-agent: %s\n", text);
        if (suggestion[0])
            fprintf(stderr, "What to do: %s\n", suggestion);
    }
    return 1;
}

static int told(const struct enrol *n, const char *state, const char *device,
                const char *more)
{
    if (n->json) {
        json_t *j = json_pack("{s:s, s:s, s:s}", "state", state, "device", device,
                              "server", n->conf.agent.server);

        (void)json_dumpf(j, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(j);
    } else {
        printf("%s\n", more);
    }
    return 0;
}

/* --- calls ------------------------------------------------------------------------------ */

static enum err call(const struct enrol *n, bool verified, const char *path,
                     const char *body, struct http_answer *out, struct err_info *info)
{
    static const char *const json_type[] = { "Content-Type: application/json", NULL };
    struct http_call c = { .server = n->api,
                           .ca_file = verified ? n->pending_ca : NULL,
                           .unverified = !verified,
                           .headers = json_type,
                           .method = body ? "POST" : "GET",
                           .path = path,
                           .body = body,
                           .timeout_ms = CALL_MS };

    return http_call(&c, out, info);
}

static int store_authority(struct enrol *n, const char *pem)
{
    struct err_info info = { .what = "" };

    n->ca.n = strlen(pem);
    memcpy(n->ca.text, pem, n->ca.n + 1);
    if (identity_write(n->pending_ca, ca_pem_str(&n->ca), 0644, &info) == ERR_OK)
        return 0;
    return complain(n, "not_stored", info.what, "Run it as root.");
}

static bool is_authority(const struct enrol *n, const char *pem)
{
    char digest[CA_DIGEST];

    return ca_digest(str_of(pem), digest, NULL) == ERR_OK &&
           strcmp(digest, n->digest) == 0;
}

/* The authority that the token names, from whoever has it. */
static int fetch_authority(struct enrol *n)
{
    struct err_info info = { .what = "" };
    struct http_answer a;
    int r = 0;
    enum err e = call(n, false, "/v1/ca", NULL, &a, &info);
    json_t *j = e == ERR_OK ? json_loadb(a.body, a.body_bytes, 0, NULL) : NULL;
    const char *pem = json_string_value(json_object_get(j, "certificate"));

    if (e != ERR_OK)
        r = complain(
            n, "server_unreachable", info.what,
            "Is the address right, and does the network let port 13299 through?");
    else if (!pem || strlen(pem) >= CA_PEM_MAX)
        r = complain(
            n, "not_active", "The server tells no authority.",
            "Is this the address of the cluster, or of a node that is not active?");
    else if (!is_authority(n, pem))
        r = complain(n, "authority_wrong",
                     "The server's authority is not the one that the token names.",
                     "Either the token is of another cluster, or somebody else answers "
                     "at this address. The token was not shown to it.");
    else
        r = store_authority(n, pem);
    json_decref(j);
    http_answer_release(&a);
    return r;
}

/* The file brings it, so that the server need not be asked for it. */
static int take_authority(struct enrol *n)
{
    if (!n->from)
        return fetch_authority(n);
    if (strlen(n->file.ca) >= CA_PEM_MAX || !is_authority(n, n->file.ca))
        return complain(n, "authority_wrong",
                        "The authority in the file is not the one that the token names.",
                        "Make the installer anew: redoubt package agent.");
    return store_authority(n, n->file.ca);
}

/* --- what is stored --------------------------------------------------------------------- */

/* The key of an enrolment that goes on, or a new one. */
static enum err prepare_key(struct enrol *n, struct err_info *info)
{
    enum err e = identity_read(n->pending_key, &n->key, info);

    if (e == ERR_NOT_FOUND) {
        e = ca_key_new(&n->key, info);
        if (e == ERR_OK)
            e = identity_write(n->pending_key, ca_pem_str(&n->key), 0600, info);
    }
    return e == ERR_OK ? ca_csr_new(ca_pem_str(&n->key), n->name, NULL, &n->csr, info)
                       : e;
}

/* The certificate first and the key last: until then a repeat finds the key still waiting. */
static enum err store(struct enrol *n, const char *pem, struct err_info *info)
{
    const struct conf_agent *c = &n->conf.agent;
    enum err e =
        ca_certificate_check(str_of(pem), ca_pem_str(&n->key), ca_pem_str(&n->ca), info);

    if (e == ERR_OK)
        e = enrol_conf_write(n->conf_path, c->server, info);
    if (e == ERR_OK)
        e = identity_write(c->ca, ca_pem_str(&n->ca), 0644, info);
    if (e == ERR_OK)
        e = identity_write(c->certificate, str_of(pem), 0644, info);
    if (e == ERR_OK)
        e = identity_write(c->key, ca_pem_str(&n->key), 0600, info);
    if (e == ERR_OK) {
        (void)unlink(n->pending_key); /* stored under its name now */
        (void)unlink(n->pending_ca);
    }
    return e;
}

/* --- the answers of the server ------------------------------------------------------------ */

/* The host that was asked; the port that the server names. */
static void choose_server(struct enrol *n, const json_t *answer)
{
    const char *first =
        json_string_value(json_array_get(json_object_get(answer, "servers"), 0));
    char host[CONF_PATH];
    uint16_t port = SERVER_PORT;

    if (first && conf_listen_split(first, host, sizeof(host), &port) != ERR_OK)
        port = SERVER_PORT;
    enrol_conf_server(n->host, port, n->conf.agent.server);
}

static int issued(struct enrol *n, const json_t *answer)
{
    const char *pem = json_string_value(json_object_get(answer, "certificate"));
    const char *device = json_string_value(json_object_get(answer, "device"));
    struct err_info info = { .what = "" };
    char words[CONF_PATH + 200];

    if (!pem || !device)
        return complain(n, "answer_wrong", "The server's answer holds no certificate.",
                        "");
    choose_server(n, answer);
    if (store(n, pem, &info) != ERR_OK)
        return complain(n, "not_stored", info.what, "Run it as root, and repeat it.");
    if (n->from)
        (void)unlink(n->from); /* best effort: its token has served */
    (void)snprintf(words, sizeof(words),
                   "This device is enrolled: %.36s, server %.200s.%s", device,
                   n->conf.agent.server,
                   n->from ? "" : "\nStart the agent: systemctl restart redoubt-agent");
    return told(n, "issued", device, words);
}

static int refused(const struct enrol *n, const json_t *answer, unsigned status)
{
    const json_t *e = json_object_get(answer, "error");
    const char *id = json_string_value(json_object_get(e, "id"));
    const char *title = json_string_value(json_object_get(e, "title"));
    const char *text = json_string_value(json_object_get(e, "text"));
    const char *suggestion = json_string_value(json_object_get(e, "suggestion"));
    char words[600];

    (void)snprintf(words, sizeof(words), "%.100s: %.400s",
                   title ? title : "The server refuses",
                   text ? text : "it does not say why");
    if (id && strcmp(id, "enrolment_refused") == 0)
        (void)unlink(n->pending_key); /* it is good for nothing: a repeat begins anew */
    if (!e)
        (void)snprintf(words, sizeof(words), "The server answers with status %u.",
                       status);
    return complain(n, id ? id : "refused", words, suggestion ? suggestion : "");
}

/* May the same be tried again?  Then how long to wait; else -1 and the exit code. */
static int ask(struct enrol *n, int *ret_code)
{
    struct err_info info = { .what = "" };
    struct http_answer a = { 0 };
    json_t *q = json_pack("{s:s, s:s, s:s}", "token", n->token, "csr", n->csr.text,
                          "name", n->name);
    char *body = q ? json_dumps(q, JSON_COMPACT) : NULL;
    enum err e = body ? call(n, true, "/v1/enrol", body, &a, &info) : ERR_MEMORY;
    json_t *answer = e == ERR_OK ? json_loadb(a.body, a.body_bytes, 0, NULL) : NULL;
    json_int_t wait = json_integer_value(json_object_get(answer, "retry_s"));

    *ret_code = -1;
    if (e == ERR_FOREIGN)
        *ret_code =
            complain(n, "server_wrong", info.what,
                     "The certificate of the servers must carry the address that "
                     "was given with --server: [trust] names, then redoubt secret "
                     "fetch.");
    else if (e != ERR_OK && !n->wait)
        *ret_code = complain(n, "server_unreachable", info.what, "Repeat it.");
    else if (e == ERR_OK && a.status == 200)
        *ret_code = issued(n, answer);
    else if (e == ERR_OK && a.status != 202 && (a.status != 503 || !n->wait))
        *ret_code = refused(n, answer, a.status);
    json_decref(answer);
    json_decref(q);
    free(body);
    http_answer_release(&a);
    if (wait < 1 || wait > RETRY_MAX_S)
        wait = wait > RETRY_MAX_S ? RETRY_MAX_S : 5;
    return (int)wait;
}

static int converse(struct enrol *n)
{
    bool said = false;
    int code;

    for (;;) {
        int seconds = ask(n, &code);
        if (code >= 0)
            return code;
        if (!n->wait && seconds > 2) {
            (void)told(n, "pending", "",
                       "The request waits for an administrator: redoubt device approve. "
                       "Repeat this command then, or give it --wait.");
            return EXIT_PENDING;
        }
        if (!said && seconds > 2 && !n->json)
            fprintf(stderr, "Waiting for an administrator to approve it ...\n");
        said = said || seconds > 2;
        (void)sleep(seconds > 5 && n->wait ? 5 : (unsigned)seconds);
    }
}

/* --- the command --------------------------------------------------------------------------- */

/* rdt1.<id>.<secret>.<digest>: only the digest is ours to understand. */
static bool token_digest(const char *token, char out[CA_DIGEST])
{
    const char *last = strrchr(token, '.');

    return strncmp(token, "rdt1.", 5) == 0 && last && strlen(last + 1) == CA_DIGEST - 1 &&
           str_copy(out, CA_DIGEST, str_of(last + 1));
}

static bool take_token(struct enrol *n, const char *given)
{
    size_t size = sizeof(n->token);

    if (strcmp(given, "-") == 0) {
        if (!fgets(n->token, (int)size, stdin))
            n->token[0] = '\0';
        n->token[strcspn(n->token, "\r\n")] = '\0';
    } else if (!str_copy(n->token, size, str_of(given))) {
        return false;
    }
    return token_digest(n->token, n->digest);
}

static bool take_server(struct enrol *n)
{
    char text[CONF_PATH];
    uint16_t port = API_PORT;

    if (conf_listen_split(n->server, n->host, sizeof(n->host), &port) != ERR_OK ||
        !n->host[0]) {
        /* Without a port: a name, an IPv4 address, or an IPv6 one in brackets or not. */
        size_t length = strlen(n->server);
        const char *first = n->server;

        if (length > 2 && first[0] == '[' && first[length - 1] == ']') {
            first++;
            length -= 2;
        }
        if (length == 0 || strpbrk(n->server, "/ ") ||
            !str_copy(n->host, sizeof(n->host), (struct str){ first, length }))
            return false;
        port = API_PORT;
    }
    enrol_conf_server(n->host, port, text);
    (void)snprintf(n->api, sizeof(n->api), "%s", text);
    return true;
}

/* Server and token as they were given; -1, or an exit code after printing. */
static int take_words(struct enrol *n, const char *token)
{
    if (!take_server(n)) {
        fprintf(stderr, "redoubt-agent enrol: %s is no address\n", n->server);
        return EXIT_USAGE;
    }
    if (!take_token(n, token)) {
        fprintf(stderr, "redoubt-agent enrol: an enrolment token looks like "
                        "rdt1.ID.SECRET.AUTHORITY: copy it completely\n");
        return EXIT_USAGE;
    }
    return -1;
}

static int take_file(struct enrol *n)
{
    struct err_info info = { .what = "" };

    if (enrol_file_read(n->from, &n->file, &info) != ERR_OK)
        return complain(n, "file_wrong", info.what,
                        "It must be a file that redoubt package agent has put into an "
                        "installer, owned by root, mode 0600.");
    n->server = n->file.server;
    return take_words(n, n->file.token);
}

static int parse(int argc, char **argv, struct enrol *n)
{
    enum { OPT_AGAIN = 256 };
    static const struct option all[] = { { "server", required_argument, NULL, 's' },
                                         { "token", required_argument, NULL, 't' },
                                         { "from", required_argument, NULL, 'f' },
                                         { "name", required_argument, NULL, 'N' },
                                         { "wait", no_argument, NULL, 'w' },
                                         { "again", no_argument, NULL, OPT_AGAIN },
                                         { "config", required_argument, NULL, 'c' },
                                         { "json", no_argument, NULL, 'j' },
                                         { "help", no_argument, NULL, 'h' },
                                         { 0 } };
    const char *token = NULL;
    int opt;

    while ((opt = getopt_long(argc, argv, "s:t:f:N:wc:jh", all, NULL)) != -1) {
        switch (opt) {
        case 's': n->server = optarg; break;
        case 't': token = optarg; break;
        case 'f': n->from = optarg; break;
        case 'N': n->name = optarg; break;
        case 'w': n->wait = true; break;
        case OPT_AGAIN: n->again = true; break;
        case 'c': n->conf_path = optarg; break;
        case 'j': n->json = true; break;
        case 'h': return fputs(usage, stdout) < 0;
        default: return EXIT_USAGE;
        }
    }
    if (optind < argc || (n->from ? n->server || token : !n->server || !token)) {
        fprintf(stderr, "redoubt-agent enrol: %s; see redoubt-agent enrol --help\n",
                optind < argc ? "unexpected argument"
                : n->from     ? "--from is instead of --server and --token"
                              : "--server and --token are needed");
        return EXIT_USAGE;
    }
    return n->from ? take_file(n) : take_words(n, token);
}

/* Is the identity that is there of another cluster than the one that the file names? */
static bool is_foreign(const struct enrol *n)
{
    struct ca_pem ca = { 0 };

    return n->from && identity_read(n->conf.agent.ca, &ca, NULL) == ERR_OK &&
           !is_authority(n, ca.text);
}

/* Paths from agent.conf; what was there already. */
static int prepare(struct enrol *n)
{
    struct err_info info = { .what = "" };
    struct ca_certificate own;
    char id[UUID_TEXT], words[200];

    if (uname(&n->machine) == 0 && !n->name)
        n->name = n->machine.nodename;
    if (!n->name)
        n->name = "";
    enrol_conf_server(n->host, SERVER_PORT, n->conf.agent.server);
    if (enrol_conf_load(n->conf_path, n->conf.agent.server, &n->conf, &info) != ERR_OK)
        return complain(n, "config", info.what, "Correct agent.conf.");
    (void)snprintf(n->pending_key, sizeof(n->pending_key), "%.240s.enrol",
                   n->conf.agent.key);
    (void)snprintf(n->pending_ca, sizeof(n->pending_ca), "%.240s.enrol",
                   n->conf.agent.ca);
    if (!n->again && !is_foreign(n) &&
        identity_load(&n->conf.agent, &own, NULL) == ERR_OK) {
        uuid_format(id, &own.device);
        (void)snprintf(words, sizeof(words),
                       "This device is enrolled already: %s. --again begins anew.", id);
        (void)told(n, "enrolled", id, words);
        if (n->from)
            (void)unlink(n->from); /* best effort: its token is not needed */
        return 0;
    }
    if (prepare_key(n, &info) != ERR_OK)
        return complain(n, "not_stored", info.what, "Run it as root.");
    return -1;
}

int enrol_command(int argc, char **argv)
{
    struct enrol *n = calloc(1, sizeof(*n));
    int code;

    if (!n)
        return 1;
    n->conf_path = CONF_AGENT_DEFAULT_PATH;
    code = parse(argc, argv, n);
    if (code < 0)
        code = prepare(n);
    if (code < 0) {
        code = take_authority(n);
        if (code == 0)
            code = converse(n);
    }
    ca_pem_wipe(&n->key);
    enrol_file_release(&n->file);
    free(n);
    return code;
}
