#!/bin/busybox sh
# First program of a guest under QEMU: the modules that its root needs, then that root, which is the host's, read-only. The rest is $LAB_INIT (guest-init.sh).
set -e
for module in $(busybox cat /modules/order); do busybox insmod "/modules/$module"; done
busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 hostroot /root
exec busybox switch_root /root /bin/sh "$LAB_INIT"
