import { readFileSync } from 'node:fs';
import { GodwitError, messageOf } from '../../base/errors.ts';
import type { DrainStatus } from '../../contract/schemas.ts';
import { parseReceipt, verifyReceipt } from '../../receipt/envelope.ts';
import type { ReceiptBody, ReceiptDisk, ReceiptWorker } from '../../receipt/receipt.ts';
import { namedFolder, ownPath, writeNamedFile } from '../../sys/named-path.ts';
import type { Context } from '../context.ts';
import { printable, table } from '../table.ts';
import { formatSize } from '../units.ts';

export type ReceiptOptions = { verify?: string; key: string[] };

/** Prints the receipt of a move, or verifies one in a file, for which no worker is needed. */
export async function receipt(
  context: Context,
  ref: string | undefined,
  options: ReceiptOptions,
): Promise<void> {
  if ((ref === undefined) === (options.verify === undefined)) {
    throw new GodwitError(
      'CLI_INVALID_OPTIONS',
      'a receipt is asked for by its move, or verified in a file',
      {
        nextAction: 'godwit receipt MOVE, or godwit receipt --verify FILE.',
      },
    );
  }
  const value =
    options.verify === undefined ? await context.fleet().receipt(ref!) : readReceipt(options.verify);
  const fingerprints = options.key.map((key) => key.toLowerCase());
  const body = verifyReceipt(value, fingerprints.length > 0 ? { fingerprints } : {});
  context.result(options.verify === undefined ? value : { verified: true, ...body }, () =>
    receiptText(body, fingerprints.length > 0),
  );
}

/** A file for each machine that has moved; answers how many. */
export async function saveReceipts(context: Context, status: DrainStatus, folder: string): Promise<number> {
  const real = namedFolder(folder, 0o755);
  let saved = 0;
  for (const { name, runId, root } of status.machines) {
    if (runId === null || root === null) continue;
    const found = await context.fleet().receipt(runId);
    // Both names are what a worker says.
    writeNamedFile(ownPath(real, `${name}-${runId}.json`), `${JSON.stringify(found, null, 2)}\n`, 0o644);
    saved++;
  }
  return saved;
}

function readReceipt(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path === '-' ? 0 : path, 'utf8');
  } catch (error) {
    throw new GodwitError('CLI_FILE_UNREADABLE', `${path} cannot be read: ${messageOf(error)}`, {
      values: { path },
      nextAction: 'Check the path.',
      cause: error,
    });
  }
  return parseReceipt(text);
}

/** Of a target that cannot tell what came. */
function diskRows({ bytes, ranges }: ReceiptBody, disk: ReceiptDisk): string[][] {
  const { guest } = disk;
  const size = (value: number) => [formatSize(value), String(value)];
  const rows = [
    ['volume', ...size(bytes.total), 'all of it'],
    ['compared', ...size(bytes.compared), `${ranges} ranges: the disk of the target has what was sealed`],
    ['empty', ...size(disk.empty), 'zeros on both sides'],
    ['changed', ...size(disk.changed), 'written by the guest, as far as can be told'],
    ['cleared', ...size(disk.cleared), 'zeros now: written or discarded by the guest'],
    ['unused', ...size(disk.unused), 'not compared: the sealed filesystem did not use it'],
    ['avoided', ...size(bytes.avoided), 'of that: data that the filesystem no longer used'],
  ];
  if (guest === null)
    return [...rows, ['guest', '-', '-', 'what it wrote is not known: nothing bounds what differs']];
  return [
    ...rows,
    ['guest wrote', ...size(guest.writeBytes), `${guest.writes} requests: no more than that differs`],
    ['guest discarded', ...size(guest.discardBytes), `${guest.discards} requests`],
  ];
}

function receiptText(body: ReceiptBody, keysKnown: boolean): string {
  const { bytes, disk, volume, machine, generations, timesMs } = body;
  const worker = ({ worker, keyFingerprint }: ReceiptWorker, generation: number) =>
    `${printable(worker)}, generation ${generation}, key ${keyFingerprint}`;
  const size = (value: number) => [formatSize(value), String(value)];
  const fetchedRows = [
    ['volume', ...size(bytes.total), 'all of it'],
    ['fetched', ...size(bytes.fetched), 'came over the wire'],
    ['not fetched', ...size(bytes.notFetched), 'holes, unused, or written before it came'],
    ['avoided', ...size(bytes.avoided), 'of that: data that the filesystem no longer used'],
    ['compared', ...size(bytes.compared), `${body.ranges} ranges: what came is what was sealed`],
    ['read back', ...size(bytes.readBack), 'of that: and is on the disk of the target'],
    ['written since', ...size(bytes.writtenSince), 'of that: the guest wrote there, or may have'],
    ['mended', ...size(bytes.mended), `${body.rangesMended} ranges were wrong and fetched again`],
    ['left as it was', ...size(bytes.mendedLeft), 'of that: the guest had written there meanwhile'],
    ...(bytes.refetched
      ? [['came twice', ...size(bytes.refetched), 'a volume server was killed before the disk had it']]
      : []),
  ];
  const rows = disk ? diskRows(body, disk) : fetchedRows;
  return [
    `move ${body.moveId} of ${printable(machine.name)} (${machine.id})`,
    `volume ${printable(volume.name)} (${volume.id})${volume.encrypted ? ', encrypted' : ''}`,
    `from ${worker(body.source, generations.sealed)}`,
    `to   ${worker(body.target, generations.opened)}`,
    `handed over ${new Date(timesMs.handedOver).toISOString()}, proven ${new Date(timesMs.proven).toISOString()}`,
    '',
    table(['', 'SIZE', 'BYTES', ''], rows),
    '',
    `free map ${body.freeMapDigest ?? 'none'}`,
    `root     ${body.root}`,
    keysKnown
      ? 'Signed by both workers, with keys that were given.'
      : 'Signed by both workers; whose the keys are is for you to know (--key FINGERPRINT).',
  ].join('\n');
}
