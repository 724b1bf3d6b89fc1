import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { GodwitError } from '../base/errors.ts';
import { Nullable } from '../base/schema.ts';
import { GuestWrites } from './proof.ts';

/**
 * What a receipt says: one move of one volume. All of it is signed by both workers (envelope.ts). Sizes in
 * bytes, times in milliseconds since 1970 by the clock of the source.
 */
const Count = Type.Integer({ minimum: 0 });
const Digest = Type.String({ pattern: '^[0-9a-f]{64}$' });
const Name = Type.String({ minLength: 1, maxLength: 256 });
const closed = { additionalProperties: false } as const;

export const ReceiptWorker = Type.Object(
  {
    worker: Name,
    /** Ed25519, SubjectPublicKeyInfo (RFC 8410) in base64. */
    publicKey: Type.String({ minLength: 1, maxLength: 256 }),
    /** SHA-256 of that structure, hex. */
    keyFingerprint: Digest,
  },
  closed,
);
export type ReceiptWorker = Static<typeof ReceiptWorker>;

/**
 * Of a target that could not tell what came (the kernel plane): all of its disk was held against the sealed
 * content (comparison.ts). Bytes; with `compared` they make up the volume.
 */
export const ReceiptDisk = Type.Object(
  {
    /** Zeros on both sides. */
    empty: Count,
    /** Something else than at the source, and not zeros. */
    changed: Count,
    /** Zeros, where the source has data. */
    cleared: Count,
    /** Not looked at: the filesystem did not use it when the volume was sealed. */
    unused: Count,
    /**
     * What the guest had written and discarded at the end of the comparison: it explains `changed` and
     * `cleared`. Null: not known.
     */
    guest: Nullable(GuestWrites),
  },
  closed,
);
export type ReceiptDisk = Static<typeof ReceiptDisk>;

export const ReceiptBody = Type.Object(
  {
    format: Type.Literal('godwit-receipt'),
    /** 2: with `disk`. */
    version: Type.Union([Type.Literal(1), Type.Literal(2)]),
    moveId: Name,
    machine: Type.Object({ id: Name, name: Name }, closed),
    volume: Type.Object({ id: Name, name: Name, lengthBytes: Count, encrypted: Type.Boolean() }, closed),
    generations: Type.Object({ sealed: Count, opened: Count }, closed),
    source: ReceiptWorker,
    target: ReceiptWorker,
    bytes: Type.Object(
      {
        /** Length of the volume: `fetched` + `notFetched`. */
        total: Count,
        /** Parts of the volume that came over the wire, each counted once. */
        fetched: Count,
        /**
         * Holes, blocks that the filesystem does not use, and blocks that the guest wrote or discarded before
         * they came.
         */
        notFetched: Count,
        /** Data of the source that the free map spared the wire; part of `notFetched`. */
        avoided: Count,
        /**
         * Digested by the target as it arrived and found to be what the source has: `readBack` +
         * `writtenSince`. Above `fetched` where a block came twice.
         */
        compared: Count,
        /** Of `compared`: read again from the target's disk, and the same. */
        readBack: Count,
        /**
         * Of `compared`: not read again, because the guest wrote there since, or may have (docs/receipts.md).
         */
        writtenSince: Count,
        /** Fetched again, because what had arrived or what was stored was wrong. */
        mended: Count,
        /** Of `mended`: not stored again, because the guest had written there in the meantime. */
        mendedLeft: Count,
        /**
         * Came twice, because a volume server of the target was killed before the disk had it: at most 64 MiB
         * each time. Left out: none, or not known.
         */
        refetched: Type.Optional(Count),
      },
      closed,
    ),
    disk: Type.Optional(ReceiptDisk),
    /** Ranges in `compared`. */
    ranges: Count,
    rangesMended: Count,
    /** SHA-256 of the sealed free map; null where there was none. */
    freeMapDigest: Nullable(Digest),
    root: Digest,
    timesMs: Type.Object({ stopped: Nullable(Count), handedOver: Count, proven: Count }, closed),
  },
  closed,
);
export type ReceiptBody = Static<typeof ReceiptBody>;

/** Throws `RECEIPT_MALFORMED` or `RECEIPT_FIGURES`. Pure. */
export function parseBody(bytes: Uint8Array): ReceiptBody {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw malformed('its payload is not JSON', error);
  }
  if (!Value.Check(ReceiptBody, value)) {
    const [first] = Value.Errors(ReceiptBody, value);
    throw malformed(
      `its payload has a field that does not fit: ${first?.instancePath || '/'} ${first?.message ?? ''}`,
    );
  }
  checkFigures(value);
  return value;
}

/** The sums that every receipt keeps. Throws `RECEIPT_FIGURES`. */
function checkFigures(body: ReceiptBody): void {
  const { bytes, disk, volume, generations, ranges, rangesMended } = body;
  const rules: [boolean, string][] = [
    [bytes.total === volume.lengthBytes, 'the total is the length of the volume'],
    [bytes.fetched + bytes.notFetched === bytes.total, 'fetched and not fetched make up the total'],
    [
      bytes.readBack + bytes.writtenSince === bytes.compared,
      'read back and written since make up what was compared',
    ],
    [bytes.compared >= bytes.fetched, 'all that was fetched was compared'],
    [bytes.avoided <= bytes.notFetched, 'what was avoided was not fetched'],
    [bytes.mendedLeft <= bytes.mended, 'what was left is part of what was mended'],
    [(rangesMended === 0) === (bytes.mended === 0), 'what was mended has ranges'],
    [(ranges === 0) === (bytes.compared === 0), 'what was compared has ranges'],
    [generations.opened === generations.sealed + 1, 'the target opened the generation after the sealed one'],
    [body.source.worker !== body.target.worker, 'source and target are two workers'],
    [(body.version === 2) === (disk !== undefined), 'version 2 is that of a disk that was compared'],
  ];
  if (disk) {
    const whole = bytes.compared + disk.empty + disk.changed + disk.cleared + disk.unused;
    rules.push(
      [whole === bytes.total, 'what was compared, empty, changed, cleared and unused make up the total'],
      [bytes.fetched === bytes.compared && bytes.readBack === bytes.compared, 'what is there was compared'],
      [unexplainedBytes(disk) === 0, 'what the guest wrote and discarded explains what differs'],
    );
  }
  const broken = rules.find(([holds]) => !holds);
  if (!broken) return;
  throw new GodwitError('RECEIPT_FIGURES', `the figures do not add up: it does not hold that ${broken[1]}`, {
    values: { rule: broken[1] },
    nextAction:
      'Do not rely on this receipt, whoever signed it. Ask both workers for it: godwit receipt MOVE.',
  });
}

/**
 * Bytes that differ beyond what the guest's requests can have changed; 0 where these are not known. A request
 * touches each block of 4 KiB that it has a part of; zeros are from writes or discards, everything else is
 * from writes. Pure.
 */
export function unexplainedBytes({ changed, cleared, guest }: ReceiptDisk): number {
  if (guest === null) return 0;
  const written = touchedBlocksMax(guest.writes, guest.writeBytes, guest.sectorBytes);
  const discarded = touchedBlocksMax(guest.discards, guest.discardBytes, guest.sectorBytes);
  const changedBlocks = Math.ceil(changed / 4096);
  const differingBlocks = Math.ceil((changed + cleared) / 4096);
  return 4096 * Math.max(0, changedBlocks - written, differingBlocks - written - discarded);
}

/**
 * With n sectors in a block, k sectors in a row touch (k + n - 2) / n + 1 blocks at most, rounded down; and
 * no more than k.
 */
function touchedBlocksMax(requests: number, bytes: number, sectorBytes: number): number {
  const sectors = Math.ceil(bytes / sectorBytes);
  const sectorsInBlock = 4096 / sectorBytes;
  const atMost = Math.floor((sectors + (2 * sectorsInBlock - 2) * requests) / sectorsInBlock);
  return Math.min(sectors, atMost);
}

export function malformed(why: string, cause?: unknown): GodwitError {
  return new GodwitError('RECEIPT_MALFORMED', `this is not a receipt: ${why}`, {
    nextAction: 'Get it again from a worker of the move: godwit receipt MOVE --json.',
    cause,
  });
}
