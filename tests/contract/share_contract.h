/*
 * share_contract: what every adapter of port/share.h must do, as tests.
 *
 * Purpose   The simulator proves something only if its share behaves like the real one: both
 *           run these.  The world is two nodes' views of one share.
 * Shape     Each contract_* test begins on a share with empty folders epoch/, node/ and
 *           request/ and no cluster file, and uses cmocka's asserts.
 */
#ifndef SHARE_CONTRACT_H
#define SHARE_CONTRACT_H

#include "port/share.h"

enum { CONTRACT_BYTES = 128 * 1024 };

/* One node's view.  The adapter hands every answer to contract_take(). */
struct contract_end {
    struct share share;
    uint32_t last_id;
    uint32_t waiting;      /* the id that is in flight, 0 none */
    bool inside;           /* within submit() */
    struct share_answer a; /* of the last answer, pointing into bytes */
    struct err_info why;
    size_t used;
    char bytes[CONTRACT_BYTES];
};

struct contract_world {
    struct contract_end a, b;
    /* Let the world go on a little; called until the answer has come. */
    void (*pump)(void *arg);
    void *arg;
};

/* Copies the answer, and fails the test if it was not asked for. */
void contract_take(struct contract_end *end, const struct share_answer *a);

/* Submits and pumps until the answer is in end->a. */
enum err contract_do(struct contract_world *w, struct contract_end *end,
                     struct share_request rq);

struct contract_test {
    const char *name; /* the rule in words */
    void (*run)(struct contract_world *w);
};
extern const struct contract_test contract_tests[];
extern const size_t contract_test_count;

/* Helpers that other tests of shares need too. */
struct contract_lease {
    char bytes[SHARE_LEASE_BYTES];
};
struct contract_lease contract_record(const char *text); /* padded to 512 bytes */
struct str contract_str(const struct contract_lease *l);
enum err contract_claim(struct contract_world *w, struct contract_end *end,
                        uint64_t epoch, const char *text);
enum err contract_renew(struct contract_world *w, struct contract_end *end,
                        uint64_t epoch, const char *text);
enum err contract_poll(struct contract_world *w, struct contract_end *end,
                       uint64_t epoch);
enum err contract_named(struct contract_world *w, struct contract_end *end,
                        enum share_op op, const char *name, const char *body);

#endif
