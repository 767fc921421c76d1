/*
 * redoubt-web: the Web Server of the cluster: publishes installation packages and signature
 * databases with nginx, on the active node.
 *
 * Exit      0 stopped as asked, 1 nginx failed, 2 wrong use or configuration, 3 the node
 *           daemon has ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "app/web/web.h"
#include "sys/ca/ca_link.h"
#include "sys/conf/conf.h"
#include "sys/log/log.h"

enum {
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_GONE = 3,
    SECRET_MAX = 1024,
    RATE_MAX = 100000
};

struct options {
    const char *conf, *run_dir, *nginx;
    struct conf_web web; /* overrides, "" if not given */
    char node[CONF_NAME];
    bool has_rate, has_workers, standalone;
};

static const char HELP[] =
    "redoubt-web: the Web Server of a Redoubt cluster (nginx on the active node)\n"
    "\n"
    "It is started by redoubt-node as a service.  By hand: redoubt-web --standalone ...\n"
    "\n"
    "  --conf FILE        redoubt.conf, section [web] (default: $REDOUBT_CONF)\n"
    "  --http ADDRESS     listen here, as [::]:8060 or 10.0.0.1:8060; overrides the "
    "file,\n"
    "  --https ADDRESS    as do all options below\n"
    "  --root DIR         the published folder\n"
    "  --store DIR        packages and signatures, as redoubt-mirror lays them out\n"
    "  --link-key FILE    the secret of the links to private packages\n"
    "  --sig-rate N       requests a second for signatures from one address; 0: no "
    "limit\n"
    "  --certificate FILE --key FILE\n"
    "  --node NAME        for the header X-Redoubt-Node\n"
    "  --run-dir DIR      a folder of its own (default: $RUNTIME_DIRECTORY)\n"
    "  --nginx PATH       default: /usr/sbin/nginx\n"
    "  --workers N        nginx worker processes, at most 16; 0: one for each processor\n"
    "  --standalone       serve now, without a cluster\n"
    "  --help, --version\n";

static bool number(uint64_t most, uint32_t *out)
{
    uint64_t v = 0;

    if (!str_u64(str_of(optarg), most, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

static bool parse_one(struct options *o, int option)
{
    switch (option) {
    case 'c': o->conf = optarg; return true;
    case 'r': o->run_dir = optarg; return true;
    case 'x': o->nginx = optarg; return true;
    case 'S': o->standalone = true; return true;
    case 'h': return str_copy(o->web.http, sizeof(o->web.http), str_of(optarg));
    case 's': return str_copy(o->web.https, sizeof(o->web.https), str_of(optarg));
    case 'd': return str_copy(o->web.root, sizeof(o->web.root), str_of(optarg));
    case 'e':
        return str_copy(o->web.certificate, sizeof(o->web.certificate), str_of(optarg));
    case 'k': return str_copy(o->web.key, sizeof(o->web.key), str_of(optarg));
    case 't': return str_copy(o->web.store, sizeof(o->web.store), str_of(optarg));
    case 'l': return str_copy(o->web.link_key, sizeof(o->web.link_key), str_of(optarg));
    case 'n': return str_copy(o->node, sizeof(o->node), str_of(optarg));
    case 'w': o->has_workers = true; return number(NGINX_WORKERS_MAX, &o->web.workers);
    case 'q': o->has_rate = true; return number(RATE_MAX, &o->web.sig_rate);
    case 'H': (void)fputs(HELP, stdout); exit(0);
    case 'V': (void)puts("redoubt-web " REDOUBT_VERSION); exit(0);
    default: return false;
    }
}

static bool parse(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        { "conf", required_argument, NULL, 'c' },
        { "run-dir", required_argument, NULL, 'r' },
        { "nginx", required_argument, NULL, 'x' },
        { "standalone", no_argument, NULL, 'S' },
        { "http", required_argument, NULL, 'h' },
        { "https", required_argument, NULL, 's' },
        { "root", required_argument, NULL, 'd' },
        { "store", required_argument, NULL, 't' },
        { "link-key", required_argument, NULL, 'l' },
        { "sig-rate", required_argument, NULL, 'q' },
        { "certificate", required_argument, NULL, 'e' },
        { "key", required_argument, NULL, 'k' },
        { "node", required_argument, NULL, 'n' },
        { "workers", required_argument, NULL, 'w' },
        { "help", no_argument, NULL, 'H' },
        { "version", no_argument, NULL, 'V' },
        { 0 },
    };
    int option;

    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
        if (!parse_one(o, option))
            return false;
    return optind == argc;
}

/* What was not given as an option comes from the configuration. */
static void fill(char *value, size_t size, const char *from)
{
    if (!value[0])
        (void)!str_copy(value, size, str_of(from));
}

static bool load(struct options *o)
{
    static struct conf conf;
    static struct conf_errors errors;

    if (!o->conf || !o->conf[0])
        return true;
    if (conf_load(o->conf, &conf, &errors)) {
        conf_errors_print(&errors, o->conf, stderr);
        return false;
    }
    fill(o->web.http, sizeof(o->web.http), conf.web.http);
    fill(o->web.https, sizeof(o->web.https), conf.web.https);
    fill(o->web.root, sizeof(o->web.root), conf.web.root);
    fill(o->web.certificate, sizeof(o->web.certificate), conf.web.certificate);
    fill(o->web.key, sizeof(o->web.key), conf.web.key);
    fill(o->web.store, sizeof(o->web.store), conf.web.store);
    fill(o->web.link_key, sizeof(o->web.link_key), conf.web.link_key);
    if (!o->has_workers)
        o->web.workers = conf.web.workers;
    if (!o->has_rate)
        o->web.sig_rate = conf.web.sig_rate;
    o->web.sig_burst = conf.web.sig_burst;
    o->web.sig_connections = conf.web.sig_connections;
    o->web.sig_retry_s = conf.web.sig_retry_s;
    fill(o->node, sizeof(o->node), conf.cluster.node);
    log_start("redoubt-web", (enum log_level)conf.log.level,
              (enum log_target)conf.log.target);
    return true;
}

/* Without it everything is served but what is private; "" then. */
static void read_link_key(const struct options *o, char out[CA_LINK_KEY])
{
    struct err_info why = { .what = "" };
    char secret[SECRET_MAX];

    out[0] = '\0';
    if (!o->web.link_key[0] || !o->web.https[0])
        return;
    int fd = open(o->web.link_key, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, secret, sizeof(secret));
    enum err e = n < 0 ? err_set(&why, ERR_IO, errno, "read %s", o->web.link_key)
                       : ca_link_key((struct str){ secret, (size_t)n }, out, &why);
    if (fd >= 0)
        (void)close(fd); /* read only */
    explicit_bzero(secret, sizeof(secret));
    if (e != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "web_no_links", log_str("why", why.what),
                  log_str("advice", "redoubt secret fetch, then restart redoubt-node"));
}

static uint32_t workers(const struct options *o)
{
    int processors = get_nprocs();

    if (o->web.workers > 0)
        return o->web.workers;
    return processors < 1                   ? 1
           : processors > NGINX_WORKERS_MAX ? NGINX_WORKERS_MAX
                                            : (uint32_t)processors;
}

static int serve(struct redoubt_service *s, const struct options *o)
{
    static struct web web;
    static char link_key[CA_LINK_KEY];
    struct err_info info = { 0 };
    const struct nginx_conf conf = {
        .program = o->nginx,
        .node = o->node,
        .http = o->web.http,
        .https = o->web.https,
        .root = o->web.root,
        .store = o->web.store,
        .certificate = o->web.certificate,
        .key = o->web.key,
        .run_dir = o->run_dir,
        .link_key = link_key,
        .workers = workers(o),
        .sig_rate = o->web.sig_rate,
        .sig_burst = o->web.sig_burst,
        .sig_connections = o->web.sig_connections,
        .sig_retry_s = o->web.sig_retry_s,
    };
    read_link_key(o, link_key);
    enum err e = web_init(&web, s, &conf, &info);
    int status = EXIT_USAGE;

    if (!e) {
        if (o->standalone)
            web_activate(&web, 0);
        else
            (void)redoubt_service_ready(s);
        e = web_run(&web, &info);
        status = e == ERR_CLOSED && redoubt_service_role_fd(s) >= 0 &&
                         redoubt_service_read_role(s, NULL) == REDOUBT_ROLE_GONE
                     ? EXIT_GONE
                     : EXIT_FAILED;
    }
    if (!e)
        return 0;
    (void)redoubt_service_status(s, "failed: %s", info.what);
    log_event(LOG_LEVEL_ERROR, "web_failed", log_str("error", err_name(e)),
              log_str("text", info.what));
    return status;
}

int main(int argc, char **argv)
{
    /* As in a configuration without these keys; see [web] in redoubt.conf(5). */
    static struct options o = { .nginx = "/usr/sbin/nginx",
                                .web = {
                                    .workers = 1, .sig_burst = 1, .sig_retry_s = 120 } };
    const char *runtime = getenv("RUNTIME_DIRECTORY");
    struct redoubt_service *s;
    int status;

    if (!parse(&o, argc, argv)) {
        (void)fprintf(stderr, "redoubt-web: wrong option; see redoubt-web --help\n");
        return EXIT_USAGE;
    }
    log_start("redoubt-web", LOG_LEVEL_INFO, LOG_TARGET_AUTO);
    s = redoubt_service_start(o.standalone ? REDOUBT_STANDALONE : 0);
    if (!s) {
        (void)fprintf(stderr,
                      "redoubt-web: the environment of the service is broken: %s\n",
                      strerror(errno));
        return EXIT_USAGE;
    }
    if (!o.conf)
        o.conf = redoubt_service_conf(s);
    if (!o.node[0])
        (void)!str_copy(o.node, sizeof(o.node), str_of(redoubt_service_node(s)));
    if (!o.run_dir)
        o.run_dir = runtime ? runtime : "";
    if (!load(&o)) {
        status = EXIT_USAGE;
    } else if (redoubt_service_role_fd(s) < 0 && !o.standalone) {
        (void)fprintf(stderr,
                      "redoubt-web: not started by redoubt-node; to serve without a "
                      "cluster: --standalone\n");
        status = EXIT_USAGE;
    } else if (!o.run_dir[0]) {
        (void)fprintf(stderr, "redoubt-web: --run-dir is needed\n");
        status = EXIT_USAGE;
    } else {
        status = serve(s, &o);
    }
    redoubt_service_stop(s);
    return status;
}
