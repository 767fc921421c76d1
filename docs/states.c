/* states: the body of docs/states.md, from the tables of src/core/cluster (tools/docs). */
#include "core/cluster/node.h"

/* What a state means for a person; the moves and names come from the machine itself. */
static const char *const meanings[NODE_STATE_COUNT] = {
    [NODE_STOPPED] = "before the start and after the end: nothing of the node runs",
    [NODE_FOLLOWING] = "passive and not prepared to take over; `redoubt status` says why",
    [NODE_READY] = "passive and prepared",
    [NODE_CLAIMING] = "the create of the next epoch is under way",
    [NODE_PROMOTING] = "holds the lease; fences the DBMS, activates the services, opens "
                       "the address",
    [NODE_ACTIVE] = "serves the devices",
    [NODE_DEMOTING] = "stands the services down, drops the address, releases the lease",
    [NODE_FENCED] = "its deadline passed, or it was told to stop at once: everything is "
                    "killed",
};

static void diagram(void)
{
    printf("```mermaid\nstateDiagram-v2\n    [*] --> %s\n",
           node_state_name(NODE_STOPPED));
    for (unsigned from = 0; from < NODE_STATE_COUNT; from++)
        for (unsigned to = 0; to < NODE_STATE_COUNT; to++)
            if (node_moves_from((enum node_state)from) & 1u << to)
                printf("    %s --> %s\n", node_state_name((enum node_state)from),
                       node_state_name((enum node_state)to));
    printf("```\n\n");
}

static void states(void)
{
    printf("| state | what it means | may become |\n|---|---|---|\n");
    for (unsigned from = 0; from < NODE_STATE_COUNT; from++) {
        const char *comma = "";

        printf("| `%s` | %s | ", node_state_name((enum node_state)from), meanings[from]);
        for (unsigned to = 0; to < NODE_STATE_COUNT; to++)
            if (node_moves_from((enum node_state)from) & 1u << to) {
                printf("%s%s", comma, node_state_name((enum node_state)to));
                comma = ", ";
            }
        printf(" |\n");
    }
}

static void obstacles(void)
{
#define X(code, bit, text) text,
    static const char *const texts[] = { NODE_OBSTACLE_MAP(X) };
#undef X

    for (size_t i = 0; i < LEN(texts); i++)
        printf("- %s\n", texts[i]);
}

int main(void)
{
    diagram();
    states();
    printf(
        "\nEvery move has a reason, which the log, the history (`redoubt log`) and the "
        "tests name:\n");
    for (unsigned why = 1; why < NODE_WHY_COUNT; why++)
        printf("%s`%s`", why == 1 ? "" : ", ", node_why_name((enum node_why)why));
    printf(
        ".\n\nA node is `following` and not `ready` as long as one of these holds:\n\n");
    obstacles();
    return 0;
}
