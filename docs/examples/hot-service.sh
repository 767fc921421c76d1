#!/bin/sh
# A hot service in shell: "does its work" by keeping a file while it is active.
# It shows the whole contract of docs/services.md; systemd-notify comes with systemd.
set -eu

work=$RUNTIME_DIRECTORY/working
rm -f "$work"
systemd-notify --ready --status="prepared"

# The daemon's end closes the descriptor; then read fails and the script ends.
while read -r role epoch <&"$REDOUBT_ROLE_FD"; do
    case $role in
    active)
        echo "epoch $epoch" >"$work"
        systemd-notify "REDOUBT_ROLE=active $epoch" --status="works in epoch $epoch"
        ;;
    standby)
        rm -f "$work"
        systemd-notify "REDOUBT_ROLE=standby" --status="prepared"
        ;;
    esac
done
