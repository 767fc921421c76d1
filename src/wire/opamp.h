/*
 * opamp: the part of the Open Agent Management Protocol that Redoubt speaks.
 *
 * Purpose   Decodes and encodes AgentToServer and ServerToAgent.  Fields that are not
 *           here are tolerated and skipped; what is here is bounded before it is used.
 * Shape     Views into the received bytes; arrays have a fixed size, and one element more
 *           is ERR_LIMIT.  Text is checked UTF-8 without NUL.  Nested attribute values
 *           (arrays, lists) are kept as OPAMP_OTHER without a value; health components are
 *           read one level deep.
 * Errors    ERR_CORRUPT malformed, ERR_LIMIT too many or too long
 * Threads   any; pure
 * Source    OpAMP specification v0.18 (WebSocket message format, AgentToServer,
 *           ServerToAgent); docs/protocol/opamp.md
 * Tests     tests/unit/test_opamp.c, tests/fuzz/fuzz_opamp.c
 */
#ifndef WIRE_OPAMP_H
#define WIRE_OPAMP_H

#include "base/err.h"
#include "wire/pb.h"
#include "wire/uuid.h"

enum {
    OPAMP_MESSAGE_MAX = 65536, /* header and body, after WebSocket reassembly */
    OPAMP_ATTRS_MAX = 64,
    OPAMP_KEY_MAX = 128,
    OPAMP_TEXT_MAX = 1024,
    OPAMP_COMPONENTS_MAX = 32,
    OPAMP_CAPS_MAX = 16,
    OPAMP_HASH_MAX = 64,
    OPAMP_FILES_MAX = 8,
    OPAMP_PACKAGES_MAX = 8,
    OPAMP_SIGNATURE_MAX = 8192,
    OPAMP_HEADERS_MAX = 8
};

enum opamp_agent_capability {
    OPAMP_REPORTS_STATUS = 0x1,
    OPAMP_ACCEPTS_CONFIG = 0x2,
    OPAMP_ACCEPTS_PACKAGES = 0x8,
    OPAMP_REPORTS_PACKAGES = 0x10,  /* package_statuses */
    OPAMP_ACCEPTS_SETTINGS = 0x100, /* of the OpAMP connection */
    OPAMP_REPORTS_HEALTH = 0x800,
    OPAMP_REPORTS_CONFIG = 0x1000, /* remote_config_status */
    OPAMP_REPORTS_HEARTBEAT = 0x2000,
    OPAMP_REPORTS_SETTINGS = 0x8000 /* connection_settings_status */
};
enum opamp_server_capability {
    OPAMP_ACCEPTS_STATUS = 0x1,
    OPAMP_OFFERS_CONFIG = 0x2,
    OPAMP_OFFERS_PACKAGES = 0x8,
    OPAMP_ACCEPTS_PACKAGES_STATUS = 0x10,
    OPAMP_OFFERS_SETTINGS = 0x20,
    OPAMP_ACCEPTS_REQUESTS = 0x40 /* connection_settings_request */
};
enum opamp_agent_flag { OPAMP_REQUEST_INSTANCE_UID = 0x1 };
enum opamp_server_flag { OPAMP_REPORT_FULL_STATE = 0x1 };

enum opamp_kind { OPAMP_STRING, OPAMP_BOOL, OPAMP_INT, OPAMP_DOUBLE, OPAMP_OTHER };

struct opamp_attr {
    struct str key;
    enum opamp_kind kind;
    struct str text; /* OPAMP_STRING */
    int64_t integer; /* OPAMP_INT; OPAMP_BOOL 0 or 1 */
    double real;     /* OPAMP_DOUBLE */
};

struct opamp_attrs {
    uint32_t count;
    struct opamp_attr at[OPAMP_ATTRS_MAX];
};

struct opamp_component {
    struct str name, status, last_error;
    bool healthy;
};

struct opamp_health {
    bool healthy;
    struct str status, last_error;
    uint64_t start_ns, status_ns;
    uint32_t count;
    struct opamp_component at[OPAMP_COMPONENTS_MAX];
};

struct opamp_custom {
    struct str capability, type, data;
};

struct opamp_caps {
    uint32_t count;
    struct str at[OPAMP_CAPS_MAX];
};

/* RemoteConfigStatus and ConnectionSettingsStatus have the same shape. */
enum opamp_status { OPAMP_UNSET, OPAMP_APPLIED, OPAMP_APPLYING, OPAMP_FAILED };
struct opamp_verdict {
    struct str hash;
    enum opamp_status status;
    struct str error;
};

struct opamp_file {
    struct str name, body, type;
};

struct opamp_config { /* AgentRemoteConfig */
    struct str hash;
    uint32_t count;
    struct opamp_file at[OPAMP_FILES_MAX];
};

struct opamp_settings { /* ConnectionSettingsOffers: what concerns OpAMP itself */
    struct str hash;
    bool has_opamp, has_certificate;
    struct str endpoint;
    uint64_t heartbeat_s;
    struct str certificate, key, ca; /* PEM */
};

/* What a package is fetched with, besides its URL. */
struct opamp_header {
    struct str key, value;
};

/* With this header a package is an order to go back to a lower version (ours). */
#define OPAMP_ORDER_HEADER "Redoubt-Order"
#define OPAMP_ORDER_BACK   "roll-back"

struct opamp_package { /* PackageAvailable, with its name */
    struct str name, version, hash;
    bool addon; /* else a top-level package: the agent itself */
    struct str url, content_hash, signature;
    uint32_t header_count;
    struct opamp_header header[OPAMP_HEADERS_MAX];
};

struct opamp_packages { /* PackagesAvailable: always the complete set */
    struct str hash;
    uint32_t count;
    struct opamp_package at[OPAMP_PACKAGES_MAX];
};

enum opamp_install {
    OPAMP_INSTALLED,
    OPAMP_INSTALL_PENDING,
    OPAMP_INSTALLING,
    OPAMP_INSTALL_FAILED,
    OPAMP_DOWNLOADING,
    OPAMP_INSTALL_UNKNOWN /* one that we do not know */
};

struct opamp_package_status {
    struct str name, has_version, has_hash, offered_version, offered_hash, error;
    enum opamp_install status;
    double percent, bytes_per_s; /* while it is downloading */
};

struct opamp_package_statuses {
    struct str hash, error; /* hash: of the set that the server offered */
    uint32_t count;
    struct opamp_package_status at[OPAMP_PACKAGES_MAX];
};

struct opamp_agent { /* AgentToServer */
    struct uuid uid;
    uint64_t sequence, capabilities, flags;
    bool has_description, has_health, has_custom, has_caps, disconnect;
    struct opamp_attrs identifying, other;
    struct opamp_health health;
    struct opamp_custom custom;
    struct opamp_caps caps;
    bool has_config_status, has_settings_status, has_csr;
    struct opamp_verdict config_status, settings_status;
    struct str csr; /* PEM: connection_settings_request.opamp.certificate_request */
    bool has_packages;
    struct opamp_package_statuses packages;
};

enum opamp_error {
    OPAMP_ERR_UNKNOWN = 0,
    OPAMP_ERR_BAD_REQUEST = 1,
    OPAMP_ERR_UNAVAILABLE = 2
};

struct opamp_server { /* ServerToAgent */
    struct uuid uid;
    uint64_t flags, capabilities;
    bool has_error, has_custom, has_caps;
    enum opamp_error error;
    struct str error_text;
    uint64_t retry_ns;
    struct opamp_custom custom;
    struct opamp_caps caps;
    bool has_config, has_settings, has_new_uid;
    bool restart; /* a command; goes with nothing else */
    struct opamp_config config;
    struct opamp_settings settings;
    bool has_packages;
    struct opamp_packages packages;
    struct uuid new_uid; /* agent_identification */
};

/* bytes: a whole WebSocket message, with its header varint 0. */
MUST_USE enum err opamp_agent_decode(struct str bytes, struct opamp_agent *out,
                                     struct err_info *info);
/* The same without the header, as plain HTTP carries it. */
MUST_USE enum err opamp_agent_body_decode(struct str bytes, struct opamp_agent *out,
                                          struct err_info *info);
MUST_USE enum err opamp_server_decode(struct str bytes, struct opamp_server *out,
                                      struct err_info *info);

/* The header in front of a WebSocket message: one byte, 0. */
enum { OPAMP_HEADER_BYTES = 1 };

/* Writes header and body; ERR_LIMIT if they do not fit. */
MUST_USE enum err opamp_agent_encode(const struct opamp_agent *m, uint8_t *buf,
                                     size_t size, size_t *out);
MUST_USE enum err opamp_server_encode(const struct opamp_server *m, uint8_t *buf,
                                      size_t size, size_t *out);

/* Attributes, for our own messages too.  attr is one KeyValue. */
MUST_USE enum err opamp_attr_decode(struct str bytes, struct opamp_attrs *to,
                                    struct err_info *info);
void opamp_attr_encode(struct pb_out *w, uint32_t number, const struct opamp_attr *a);

/* For building: silently drops what is beyond OPAMP_ATTRS_MAX. */
void opamp_add_text(struct opamp_attrs *to, struct str key, struct str text);
void opamp_add_int(struct opamp_attrs *to, struct str key, int64_t v);
void opamp_add_bool(struct opamp_attrs *to, struct str key, bool v);

#endif
