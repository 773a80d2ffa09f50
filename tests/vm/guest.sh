# What the scripts of this folder that boot guests have in common; sourced, after `guest` is set. Sets `work`, a directory of its own that is
# removed at the end, and `cache`.
cache=${CRYOPOD_VM_CACHE:-$HOME/.cache/cryopod-vm}
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $guest in
aarch64) target=aarch64-unknown-linux-gnu goarch=arm64 cc=aarch64-linux-gnu-gcc strip=aarch64-linux-gnu-strip libs=/usr/aarch64-linux-gnu/lib
    console=ttyAMA0 qemu=(qemu-system-aarch64 -M virt -cpu "${CRYOPOD_VM_CPU:-max,pauth-impdef=on}") ;;
x86_64) target=x86_64-unknown-linux-gnu goarch=amd64 cc=gcc strip=strip libs=/lib/x86_64-linux-gnu
    console=ttyS0 qemu=(qemu-system-x86_64 -M q35 -cpu "${CRYOPOD_VM_CPU:-max}") ;;
*) echo "tests/vm: no guest $guest" >&2; exit 2 ;;
esac

# fetch GUEST WHAT: the file of tests/vm/packages, from the cache or from Debian's mirror.
fetch() {
    local path sum file
    read -r path sum < <(awk -v guest="$1" -v what="$2" '$1 == guest && $2 == what { print $3, $4 }' tests/vm/packages) ||
        { echo "tests/vm: tests/vm/packages has no $2 for $1" >&2; return 2; }
    file=$cache/$(basename "$path")
    if ! echo "$sum  $file" | sha256sum -c --status 2>/dev/null; then
        curl -sfL --max-time 300 -o "$file.part" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}/$path" ||
            { echo "tests/vm: cannot download $path; put it into $cache, or name a mirror by DEBIAN_MIRROR" >&2; return 1; }
        echo "$sum  $file.part" | sha256sum -c --status ||
            { echo "tests/vm: $path has another sha256 than tests/vm/packages says" >&2; return 1; }
        mv "$file.part" "$file"
    fi
    echo "$file"
}

# Fills $work/root: cryopod and its tests for the guest, where they are here: paths are compiled into them. Sets `out`, `tests`, `fixtures`.
build_root() {
    root=$work/root
    name=${target//-/_}
    export "CARGO_TARGET_${name^^}_LINKER=$cc" "CARGO_TARGET_${name^^}_RUSTFLAGS=-C target-feature=+crt-static"
    cargo build -q --release --target "$target"
    tests=$(cargo test --release --target "$target" --no-run --test roundtrips --message-format=json 2>/dev/null |
        grep -o '"executable":"[^"]*roundtrips-[^"]*"' | cut -d'"' -f4)
    out=$(dirname "$(dirname "$tests")")
    fixtures=$(dirname "$out")/tmp/fixtures
    mkdir -p "$fixtures"
    export CGO_ENABLED=0 GOARCH=$goarch
    build_fixture() {
        local source=$1 name=${1#fixtures/}
        name=${name//[\/.]/_}
        [ "$fixtures/$name" -nt "$source" ] && [ "$fixtures/$name" -nt fixtures/fixture.h ] && return
        if [ "${source##*.}" = go ]; then
            go build -o "$fixtures/$name" "$source"
            return
        fi
        local flags
        flags=$(sed -n '1s/.*flags:\(.*\)\*\/.*/\1/p' "$source")
        # shellcheck disable=SC2086 # the words are options
        "$cc" -O1 -g -Wall -Wextra -pthread -o "$fixtures/$name" -I fixtures "$source" $flags 2>"$work/cc.log" || { echo "tests/vm: $source does not compile for $guest" >&2; rm -f "$fixtures/$name"; }
    }
    for source in fixtures/*/*.c fixtures/*/*.go; do build_fixture "$source"; done

    mkdir -p "$root"/{bin,dev,proc,sys,tmp,etc,lib,usr/lib}
    dpkg-deb --fsys-tarfile "$(fetch "$guest" busybox)" | tar -x -C "$root" ./bin/busybox
    cp tests/vm/init "$root/init"
    "$cc" -static -o "$root/apart" tests/vm/apart.c
    for lib in "$libs"/ld-linux*.so* "$libs"/lib{c,m,dl,pthread,rt}.so.[0-9]; do cp -L "$lib" "$root/lib/"; done
    [ "$guest" != x86_64 ] || { mkdir -p "$root/lib64"; cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"; }
    echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
    put() { mkdir -p "$root$(dirname "$1")"; cp -a "$1" "$root$1"; }
    put "$out/cryopod"
    put "$tests"
    put "$PWD/fixtures"
    put "$fixtures"
    find "$root$fixtures" -type f -exec touch {} +
    "$strip" "$root$out/cryopod" "$root$tests"
}

# boot KERNEL ROOT LOG [QEMU OPTION…]: until the guest switches itself off.
boot() {
    local kernel=$1 root=$2 log=$3 image
    shift 3
    image=$(fetch "$guest" "$kernel")
    [ -e "$work/$kernel" ] || { mkdir "$work/$kernel" && dpkg-deb --fsys-tarfile "$image" | tar -x -C "$work/$kernel" --wildcards './boot/vmlinuz-*'; }
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
    timeout "${CRYOPOD_VM_TIMEOUT:-1500}" "${qemu[@]}" "$@" -m 2048 -nographic -nic none -no-reboot \
        -kernel "$work/$kernel"/boot/vmlinuz-* -initrd "$work/initrd" -append "console=$console quiet panic=-1 ${CRYOPOD_VM_APPEND:-}" </dev/null |
        tr -d '\r' | tee "$log" || true
}
