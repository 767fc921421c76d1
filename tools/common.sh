# shellcheck shell=bash disable=SC2154
# Sourced by ./dev and the scripts in tools/: what they share.  The caller has set $top.

# Debian's own interpreter is the one that sees Debian's Python packages.
# shellcheck disable=SC2034
python=/usr/bin/python3
jobs=$(nproc 2>/dev/null || echo 2)

say() { printf '%s\n' "$*"; }
die() { printf 'dev: %s\n' "$*" >&2; exit 1; }
usage_error() { printf 'dev: %s (see ./dev %s --help)\n' "$2" "$1" >&2; exit 2; }

# Is there a way to be root at all?
can_be_root() { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null 2>&1; }

# Runs a command as root: directly, or through sudo where there is one.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo -- "$@"
    else
        die "this step needs root and there is no sudo: run it as root: $1"
    fi
}

# number VALUE WHAT COMMAND: VALUE must be a positive decimal number.
number() {
    case $1 in
        '' | *[!0-9]*) usage_error "$3" "$2 needs a number, not '$1'" ;;
    esac
}

# setup_build DIR MESON-ARGUMENT...: configures DIR once; an old one with other options is renewed.
setup_build() {
    local dir=$1 stamp
    shift
    stamp="$dir/.dev-options"
    if [ -f "$dir/build.ninja" ] && [ "$(cat "$stamp" 2>/dev/null || :)" = "$*" ]; then
        return 0
    fi
    rm -rf "$dir"
    mkdir -p "$dir"
    meson setup "$dir" "$top" "$@" || return 1
    printf '%s' "$*" >"$stamp"
}
