/*
 * enrol: `redoubt-agent enrol`, which gives a device its identity.
 *
 * Purpose   Makes a key that never leaves this device, shows an enrolment token to the server
 *           and stores what it gets: certificate, authority, the server's address.
 * Safety    The token names the authority.  Its certificate is fetched from whoever answers
 *           and must have that digest; only a server that it signed is shown the token.
 * Shape     Repeating it goes on where it ended: until there is a certificate, the key waits
 *           as <key>.enrol.
 * Threads   one; blocking
 * Tests     tests/contract/test_enrol.py
 */
#ifndef APP_AGENT_ENROL_H
#define APP_AGENT_ENROL_H

/* argv[0] is "enrol".  Returns an exit code. */
int enrol_command(int argc, char **argv);

#endif
