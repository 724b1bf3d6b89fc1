/**
 * Every number of the README, each beside its peer in the same run.
 *   npm run bench                        all, some ten minutes
 *   npm run bench -- attach interruption only these: attach, hydration, guest-latency, receipts, interruption, sparse, sizes, freemap, memory, density, nbd, nbd-client, iscsi, iscsi-initiator, iscsi-conformance, xts, encryption, journal
 *   npm run bench -- --quick             fewer rounds
 *   npm run bench -- earlier --commit 917665f     an operation of our servers, against an earlier commit
 */
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, commit: { type: 'string' } },
  allowPositionals: true,
});
const quick = values.quick;
const say = (text: string) => process.stdout.write(`${text}\n`);

const BENCHES: Record<string, () => Promise<void>> = {
  async attach() {
    const { format, run } = await import('./attach.ts');
    say('## Attach path: fio on ext4 on the loop device, against nbdfuse on nbdkit (C) and the raw file\n');
    say(format(await run({ quick })));
  },
  async journal() {
    const { benchJournal, journalTable } = await import('./journal.ts');
    say('## Questions to the journal with a long history\n');
    say(journalTable(benchJournal(quick ? 5 : 15)));
  },
  async receipts() {
    const { benchReceipts } = await import('./receipts.ts');
    const { throughput, latency, proofMiBps, rounds } = await benchReceipts(quick ? 1 : 3);
    say('## Hydration with receipts, against the same without\n');
    say('| | with | without | ratio |\n|---|---|---|---|');
    say(
      `| 512 MiB until durable, median of ${rounds} | ${throughput.withMiBps.toFixed(0)} MiB/s | ${throughput.withoutMiBps.toFixed(0)} MiB/s | ${throughput.ratio.toFixed(2)} |`,
    );
    say(
      `| guest p99 while it hydrates, 4k random read | ${latency.withP99Ms.toFixed(2)} ms | ${latency.withoutP99Ms.toFixed(2)} ms | ${latency.ratio.toFixed(2)} |`,
    );
    say(`| the proof afterwards | ${proofMiBps.toFixed(0)} MiB/s | | |`);
  },
  async 'guest-latency'() {
    const { benchGuestLatency, latencyTable, QUICK } = await import('./guest-latency.ts');
    say('## What a guest feels of hydration at slow disks, against block-stream\n');
    say(latencyTable(await benchGuestLatency(quick ? QUICK : {})));
  },
  async hydration() {
    const { benchHydration } = await import('./hydration.ts');
    const { throughput, latency, rounds } = await benchHydration(quick ? 1 : 3);
    say('## Hydration over loopback iSCSI, against qemu-img convert of the same export\n');
    say('| | godwit | peer | ratio | goal |\n|---|---|---|---|---|');
    say(
      `| 1 GiB until durable, median of ${rounds} | ${throughput.godwitMiBps.toFixed(0)} MiB/s | qemu-img ${throughput.qemuImgMiBps.toFixed(0)} MiB/s | ${throughput.ratio.toFixed(2)} | 0.8 or more |`,
    );
    say(
      `| guest p99, 4k random read on a cold clone | ${latency.runningP99Ms.toFixed(2)} ms hydrating (${latency.runningMiBps.toFixed(0)} MiB/s) | paused ${latency.pausedP99Ms.toFixed(2)} ms | ${latency.ratio.toFixed(2)} | 1.5 or less |`,
    );
  },
  async interruption() {
    const { interruptionTable, measureInterruption } = await import('./interruption.ts');
    say('## Interruption of a PostgreSQL machine, against its restart in place\n');
    say(interruptionTable(await measureInterruption({ rounds: quick ? 3 : 7, sizesGib: [1, 10, 100] })));
  },
  async sparse() {
    const { benchSparse } = await import('./sparse.ts');
    const { usedBytes, hydratedMs, wireOverUsed, rounds } = await benchSparse(quick ? 3 : 5);
    say(`## 100 GiB with ${(usedBytes / 2 ** 20).toFixed(1)} MiB in use, median of ${rounds}\n`);
    say('| | value | goal |\n|---|---|---|');
    say(`| whole after | ${(hydratedMs / 1000).toFixed(2)} s | under 2 s |`);
    say(`| bytes on the wire / bytes in use | ${wireOverUsed.toFixed(2)} | under 1.5 |`);
  },
  async sizes() {
    const { benchSizes, SIZES, sizesTable } = await import('./sizes.ts');
    const { parseSize } = await import('../src/cli/units.ts');
    say('## The same move at several sizes\n');
    say(sizesTable(await benchSizes(SIZES.map(parseSize), quick ? 1 : 3)));
  },
  async freemap() {
    const { benchFreeMap } = await import('./freemap.ts');
    say('## Free map of an ext4 that is nearly empty: what is left to read after the stop\n');
    say('| | after the stop | bitmaps | without a first pass | dumpe2fs | goal |\n|---|---|---|---|---|---|');
    for (const [gib, goal] of [
      [100, 'under 50 ms'],
      [1024, 'under 300 ms'],
    ] as const) {
      const found = await benchFreeMap(gib * 2 ** 30, quick ? 3 : 7);
      const bitmaps = `${found.bitmapsReadAgain} of ${found.bitmapsRead}`;
      say(
        `| ${gib} GiB | ${found.finishMs} ms | ${bitmaps} | ${found.unprimedMs} ms | ${found.dumpe2fsMs} ms | ${goal} |`,
      );
    }
  },
  async nbd() {
    const { format, run } = await import('./nbd.ts');
    say("## NBD server under fio's libnbd engine, against nbdkit and qemu-nbd on the same file\n");
    say(format(await run({ quick })));
  },
  async 'nbd-client'() {
    const { format, run } = await import('./nbd-client.ts');
    say("## NBD client, against libnbd's and QEMU's on the same server\n");
    say(format(await run({ rounds: quick ? 1 : 5 })));
  },
  async memory() {
    const { measureVolumeMemory } = await import('./volume-memory.ts');
    const { idle, clone } = await measureVolumeMemory();
    say('## Resident memory of a volume server\n');
    say('| | MiB | of that anonymous | goal |\n|---|---|---|---|');
    say(`| idle | ${idle.resident} | ${idle.anonymous} | under 80 |`);
    say(`| a clone of 1 TiB, opened | ${clone.resident} | ${clone.anonymous} | under 100 |`);
  },
  async density() {
    const { densityTable, measureDensity } = await import('./density.ts');
    say('## What idle machines cost, and how fast they are made\n');
    say(densityTable(await measureDensity(quick ? [10] : [50, 200])));
  },
  async iscsi() {
    const { benchIscsi, iscsiTable } = await import('./iscsi.ts');
    say('## iSCSI target, against tgt (C) on the same file\n');
    say(iscsiTable(await benchIscsi({ rounds: quick ? 1 : 5 })));
  },
  async 'iscsi-initiator'() {
    const { format, run } = await import('./iscsi-initiator.ts');
    say('## iSCSI initiator, against libiscsi on the same targets\n');
    say(format(await run({ quick })));
  },
  async 'iscsi-conformance'() {
    const { conformanceTable, runConformance } = await import('./iscsi-conformance.ts');
    say('## iSCSI conformance: iscsi-test-cu --dataloss, against tgt\n');
    say(conformanceTable(await runConformance()));
  },
  async earlier() {
    const { commit } = values;
    if (commit === undefined) return;
    const { benchEarlier, earlierTable } = await import('./earlier.ts');
    const rounds = quick ? 3 : 15;
    say(`## Processor time an operation, against ${commit}, median of ${rounds} rounds\n`);
    say(earlierTable(await benchEarlier(commit, rounds)));
  },
  async xts() {
    const { benchXts, xtsTable } = await import('./xts.ts');
    say('## AES-256-XTS in MiB/s, against openssl speed\n');
    say(xtsTable(await benchXts(quick ? 1 : 5)));
  },
  async encryption() {
    const { formatEncrypted, run } = await import('./attach.ts');
    say('## Attach path: an encrypted volume against a plain one\n');
    say(formatEncrypted(await run({ quick, encryption: true })));
    const { measureEncrypted } = await import('./interruption.ts');
    const moved = await measureEncrypted({ rounds: quick ? 2 : 12, sizeGib: 10 });
    say('\n## Interruption: PostgreSQL moved with an encrypted volume of 10 GiB against a plain one\n');
    say(`| median of ${moved.rounds} moves each | encrypted | plain | encrypted / plain | goal |`);
    say('|---|---|---|---|---|');
    say(
      `| interruption | ${moved.encryptedMs.toFixed(0)} ms | ${moved.plainMs.toFixed(0)} ms | ${moved.ratio.toFixed(2)} | 1.1 or less |`,
    );
  },
};

const unknown = positionals.filter((name) => !(name in BENCHES));
if (unknown.length > 0) {
  process.stderr.write(`no bench ${unknown.join(', ')}; there are: ${Object.keys(BENCHES).join(', ')}\n`);
  process.exit(2);
}
for (const [name, bench] of Object.entries(BENCHES)) {
  if (positionals.length > 0 && !positionals.includes(name)) continue;
  await bench();
  say('');
}
