/* The commands for signature databases. */
#include "app/ctl/ctl_option.h"
#include "app/ctl/ctl_signature.h"

static const struct ctl_command commands[] = {
    { .name = "signature verify",
      .args = "FILE...",
      .args_min = 1,
      .args_max = ARGS_MANY,
      .summary = "are these files what their names say, and genuine?",
      .doc =
          "Reads databases (.cvd), their increments (.cdiff) and signatures (.sign) and "
          "verifies the digital signatures with the keys of ClamAV's makers, without an "
          "engine and without the cluster. The exit code is 1 if a file is refused.",
      .run = cmd_signature_verify },
};

const struct ctl_section ctl_signature_section = { .title = "Signature databases",
                                                   .commands = commands,
                                                   .count = LEN(commands) };
