#!/bin/sh
# PID 1 of a guest of the lab. Its root is the host's root, read-only (hostfs, 9p); this lays a tmpfs over it, brings the network up and
# becomes the agent. LAB_NAME, LAB_ADDRESS, LAB_CARD, LAB_MODULES, LAB_CHECKOUT, LAB_NODE and LAB_AGENT come from the kernel's command line.
set -e
fail() { echo "lab: guest init failed: $*"; exec sleep 1; }
release=$(uname -r)
modules=$LAB_MODULES/$release
mount -n -t proc proc /proc || fail proc
mount -n -t sysfs sysfs /sys || fail sysfs
insmod "$modules/kernel/fs/overlayfs/overlay.ko" || fail overlay
mount -n -t tmpfs -o mode=755 over /mnt || fail tmpfs
mkdir /mnt/upper /mnt/work /mnt/root
mount -n -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root || fail overlay mount
cd /mnt/root
mkdir -p usr/lib/modules/"$release" host
mount -n --bind "$modules" usr/lib/modules/"$release"
mount -n --move /proc proc
mount -n --move /sys sys
mount -n -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
# What udev makes elsewhere.
ln -s /proc/self/fd dev/fd
for stream in stdin:0 stdout:1 stderr:2; do ln -s "fd/${stream#*:}" "dev/${stream%:*}"; done
mount -n -t devpts devpts dev/pts
for place in dev/shm run tmp var/lock; do
  [ -L "$place" ] || mount -n -t tmpfs -o mode=1777 tmpfs "$place"
done
mkdir -p run/lock
# A checkout below /tmp is not to be hidden with it.
if [ ! -e ".$LAB_CHECKOUT/package.json" ]; then
  mkdir -p ".$LAB_CHECKOUT"
  mount -n --bind "$LAB_CHECKOUT" ".$LAB_CHECKOUT" || fail checkout
fi
# pivot_root and not chroot: the kernel looks for modprobe in the root of its own threads.
pivot_root . host || fail pivot_root
exec chroot . /bin/sh -c '
  export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DM_DISABLE_UDEV=1
  mount -n -t configfs configfs /sys/kernel/config 2>/dev/null || true
  mount -n -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
  hostname "$LAB_NAME"
  ip link set lo up
  ip address add "$LAB_ADDRESS/24" dev "$LAB_CARD"
  ip link set "$LAB_CARD" up
  exec tini -s -- "$LAB_NODE" "$LAB_AGENT"
' </dev/null
