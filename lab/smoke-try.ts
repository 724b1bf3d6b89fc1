import { Lab } from '/work/wt/kernel-plane/lab/lab.ts';
import { mustRun } from '/work/wt/kernel-plane/lab/member.ts';

const t = Date.now();
const lab = await Lab.start({
  guests: [
    { name: 'a', diskBytes: [2 ** 31] },
    { name: 'b', diskBytes: [2 ** 31] },
  ],
});
try {
  console.log('up', Date.now() - t);
  const a = lab.guest('a');
  console.log(
    await mustRun(a, [
      'sh',
      '-c',
      'modprobe -a dm-mod dm-clone dm-crypt; dmsetup targets; uname -r; ls -la /dev/ubd* /dev/mapper; df -h /; free -m; ls /sys/fs/cgroup; cat /proc/sys/kernel/modprobe; modprobe -a iscsi_tcp iscsi_target_mod target_core_file; lsmod | head -30; cat /proc/mounts; cat /proc/filesystems',
    ]),
  );
  console.log(await mustRun(a, ['ping', '-c', '2', lab.guest('b').address]).catch((e) => e.message));
  await lab.delay(a, 20);
  console.log(await mustRun(a, ['ping', '-c', '2', lab.guest('b').address]).catch((e) => e.message));
  await lab.delay(a, 0);
  await lab.network.cut();
  console.log(await a.run(['timeout', '2', 'ping', '-c', '1', lab.guest('b').address]));
  await lab.network.heal();
  console.log(await mustRun(a, ['ping', '-c', '2', lab.guest('b').address]).catch((e) => e.message));
} finally {
  await lab.close();
}
