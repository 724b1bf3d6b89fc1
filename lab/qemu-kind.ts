import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { diskLetter, type GuestKind } from './guest-kind.ts';

/** Made by scripts/lab-kernel. */
const KERNEL_DIR = fileURLToPath(new URL('../.cache/lab-kernel', import.meta.url));

/**
 * QEMU by emulation, with Debian's kernel as it is and dm-clone as a module of its source: what a host of a
 * fleet runs, on a processor that is emulated and so some times slower.
 */
export const qemuKind: GuestKind = {
  patience: 4,
  bootMs: 6_500,
  card: 'eth0',
  modulesDir: join(KERNEL_DIR, 'modules'),
  disk: (index) => `/dev/vd${diskLetter(index)}`,

  async prepare() {
    if (existsSync(KERNEL_DIR)) return;
    throw new Error(`there is no kernel for QEMU in ${KERNEL_DIR}: scripts/setup lab-qemu makes it`);
  },

  command: (spec) => ({
    argv: [
      'qemu-system-x86_64',
      // Not microvm, which boots sooner and hangs now and then. AVX would be emulated more slowly than what
      // programs use without it.
      ...['-M', 'pc', '-accel', 'tcg,thread=multi,tb-size=256', '-cpu', 'max,avx=off,avx2=off,la57=off'],
      ...['-smp', '1', '-m', `${spec.memoryMib}M`, '-nodefaults', '-nographic', '-no-reboot'],
      ...['-fsdev', 'local,id=root,path=/,security_model=none,readonly=on,multidevs=remap'],
      ...['-device', 'virtio-9p-pci,fsdev=root,mount_tag=hostroot'],
      ...['-netdev', `tap,id=card,ifname=${spec.tap},script=no,downscript=no`],
      ...['-device', `virtio-net-pci,netdev=card,mac=${spec.mac},romfile=`],
      ...spec.disks.flatMap((path, index) => [
        ...['-drive', `file=${path},format=raw,if=none,id=disk${index},discard=unmap`],
        ...['-device', `virtio-blk-pci,drive=disk${index}`],
      ]),
      ...['-kernel', join(KERNEL_DIR, 'vmlinuz'), '-initrd', join(KERNEL_DIR, 'initramfs.gz')],
      ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
      '-append',
      [
        ...['console=ttyS0', 'quiet', 'panic=-1', 'net.ifnames=0', `LAB_INIT=${spec.init}`],
        ...spec.environment,
      ].join(' '),
    ],
    env: { HOME: spec.folder },
  }),
};
