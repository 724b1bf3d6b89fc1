import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { GodwitError, messageOf } from '../../base/errors.ts';
import type { ServeReply, ServeVolumeRequest, VolumeView } from '../../contract/schemas.ts';
import type { Context } from '../context.ts';
import { EXIT, ExitWith } from '../exit.ts';
import { owned } from '../fleet-client.ts';
import { interruption } from '../interruption.ts';
import { table } from '../table.ts';
import { formatDuration, formatSize, parseSize } from '../units.ts';
import { percent, workerFor } from './machine.ts';

export async function create(
  context: Context,
  name: string,
  options: {
    size: string;
    filesystem: string;
    worker?: string;
    encrypted?: boolean;
    encryption?: boolean;
    dmCrypt?: boolean;
  },
): Promise<void> {
  const lengthBytes = parseSize(options.size);
  const fleet = context.fleet();
  const { client, name: worker } = await workerFor(fleet, options.worker);
  await fleet.mustBeFree('volume', name, worker);
  const filesystem = options.filesystem as VolumeView['filesystem'];
  // Without either: encrypted.
  const encrypted = options.encryption === false ? false : options.encrypted;
  const volume = await client.createVolume({
    name,
    lengthBytes,
    filesystem,
    ...(encrypted !== undefined && { encrypted }),
    ...(options.dmCrypt && { dmCrypt: true }),
  });
  context.result(
    volume,
    () =>
      `${volume.name} created on ${volume.worker}: ${formatSize(volume.lengthBytes)} ${volume.filesystem}${volume.encrypted ? ', encrypted' : ''} (${volume.id})`,
  );
}

export async function importVolume(
  context: Context,
  name: string,
  source: string,
  options: { filesystem?: string; encryption?: boolean; worker?: string },
): Promise<void> {
  const fleet = context.fleet();
  const { client, name: worker } = await workerFor(fleet, options.worker);
  await fleet.mustBeFree('volume', name, worker);
  // A URI with a secret is better not among the arguments, which everybody on this host can read.
  const location = source === '-' ? (await text(process.stdin)).trim() : source;
  const volume = await client.importVolume({
    name,
    source: /^[a-z][a-z0-9+.-]*:/i.test(location) ? location : resolve(context.cwd, location),
    ...(options.filesystem !== undefined && { filesystem: options.filesystem as VolumeView['filesystem'] }),
    ...(options.encryption === false && { encrypted: false }),
  });
  context.result(
    volume,
    () =>
      `${volume.name} can be used on ${volume.worker}: ${formatSize(volume.lengthBytes)} ${volume.filesystem} (${volume.id}); its blocks follow`,
  );
}

export async function list(context: Context, options: { all?: boolean }): Promise<void> {
  const { items, unreachable } = await context.fleet().volumes();
  // Without --all only the copy that counts; the sealed and retained ones of earlier moves are left out.
  const volumes = (
    options.all ? items : owned('volume', items).filter(({ state }) => state !== 'retained')
  ).sort((left, right) => left.name.localeCompare(right.name));
  context.result(
    {
      volumes,
      unreachable: unreachable.map(({ worker, url, error }) => ({ worker, url, error: error.toWire() })),
    },
    () => (volumes.length === 0 && unreachable.length === 0 ? 'No volumes.' : volumeTable(volumes)),
  );
  context.noteUnreachable(unreachable);
  if (unreachable.length > 0) throw new ExitWith(EXIT.unreachable);
}

function volumeTable(volumes: readonly VolumeView[]): string {
  const rows = volumes.map((volume) => [
    volume.name,
    volume.id,
    volume.worker,
    formatSize(volume.lengthBytes),
    formatSize(volume.usedBytes),
    volume.filesystem,
    `${volume.state}@${volume.generation}`,
    volume.machineId ?? '-',
    hydrationOf(volume),
  ]);
  return table(['NAME', 'ID', 'WORKER', 'SIZE', 'USED', 'FS', 'STATE', 'MACHINE', 'HYDRATED'], rows);
}

function hydrationOf({ hydration }: VolumeView): string {
  if (hydration === null || hydration.state === 'complete') return '-';
  return `${percent(hydration.blocksPresent, hydration.blocksTotal)} ${hydration.state}`;
}

function transportWords({ transport }: NonNullable<VolumeView['hydration']>): string {
  if (transport === 'foreign') return '(from a foreign disk)';
  return transport === 'tls' ? '(TLS)' : '(in the clear)';
}

export async function show(context: Context, ref: string): Promise<void> {
  const { volume } = await context.fleet().volume(ref);
  context.result(volume, () => {
    const { hydration, served } = volume;
    const rows = [
      ['name', volume.name],
      ['id', volume.id],
      ['worker', volume.worker],
      ['size', formatSize(volume.lengthBytes)],
      ['used', formatSize(volume.usedBytes)],
      ['filesystem', volume.filesystem],
      ['encrypted', volume.encrypted ? 'yes' : 'no'],
      ['state', volume.state],
      ['generation', String(volume.generation)],
      ['machine', volume.machineId ?? '-'],
      ['created', new Date(volume.createdAtMs).toISOString()],
      ...(volume.dataLoss
        ? [['DATA LOST', `${new Date(volume.dataLoss.atMs).toISOString()}: ${volume.dataLoss.reason}`]]
        : []),
      ...(volume.destroyAfterMs === null
        ? []
        : [['destroyed after', new Date(volume.destroyAfterMs).toISOString()]]),
      ...(served === null
        ? []
        : [
            [
              'served',
              `${served.location ?? 'just starting'} (${served.writable ? 'writable' : 'read-only'})`,
            ],
            ['clients', String(served.connections)],
          ]),
      ...(hydration === null
        ? []
        : [
            ['hydrated', `${percent(hydration.blocksPresent, hydration.blocksTotal)} (${hydration.state})`],
            ['rate', `${formatSize(hydration.bytesPerSecond)}/s`],
            ['eta', hydration.etaMs === null ? '-' : formatDuration(hydration.etaMs)],
            ['only at the source', formatSize(hydration.exposedBytes)],
            ['over the wire', `${formatSize(hydration.wireBytes)} ${transportWords(hydration)}`],
            ...(hydration.missesKept
              ? []
              : [['read misses', 'not kept: each comes again when read again or copied; not counted']]),
          ]),
    ];
    return table(['', ''], rows).trimStart();
  });
}

/** Between two looks whether a volume is still served. */
const LOOK_MS = 2_000;

type ServeOptions = {
  nbd?: string;
  iscsi?: string;
  writable?: boolean;
  openToHost?: boolean;
  tls?: boolean;
  chapUser?: string;
  chapSecretFile?: string;
  detach?: boolean;
  stop?: boolean;
};

export async function serve(context: Context, ref: string, options: ServeOptions): Promise<void> {
  const { worker, volume } = await context.fleet().volume(ref);
  const stop = () => worker.client.stopServing(volume.id);
  const stopped = () => context.result({ served: null }, () => `${volume.name} is not served any more`);
  if (options.stop) {
    await stop();
    stopped();
    return;
  }
  const request = serveRequest(volume, options);
  const interrupted = interruption();
  try {
    const reply = await worker.client.serveVolume(volume.id, request);
    context.result(reply, () => serveText(volume, reply));
    if (options.detach) return;
    const { signal } = interrupted;
    while (!signal.aborted) {
      await sleep(LOOK_MS, undefined, { signal }).catch(() => {});
      // A worker that does not answer for a while does not end it.
      const now = signal.aborted ? null : await worker.client.showVolume(volume.id).catch(() => null);
      if (now && now.served === null) {
        throw new GodwitError(
          'CLI_SERVE_ENDED',
          `${volume.name} is not served any more: somebody else ended it`,
          {
            values: { volumeId: volume.id },
            nextAction: `Look at it with godwit volume show ${volume.name}.`,
          },
        );
      }
    }
    await stop();
    context.note(`${volume.name} is not served any more`);
  } finally {
    interrupted.dispose();
  }
}

function serveRequest(volume: VolumeView, options: ServeOptions): ServeVolumeRequest {
  const { nbd, iscsi, chapUser, chapSecretFile } = options;
  const listen = nbd ?? iscsi;
  if (listen === undefined) throw badServe('it needs --nbd or --iscsi, or --stop');
  const protocol: ServeVolumeRequest['protocol'] = nbd === undefined ? 'iscsi' : 'nbd';
  const writable = options.writable === true;
  if (protocol === 'nbd' && (chapUser ?? chapSecretFile) !== undefined)
    throw badServe('NBD has no users; --chap-… is for --iscsi');
  if (protocol === 'iscsi' && options.openToHost === true)
    throw badServe('iSCSI asks everybody for a secret; --open-to-host is for --nbd');
  if (chapUser !== undefined && chapSecretFile === undefined)
    throw badServe('--chap-user needs --chap-secret-file');
  const request: ServeVolumeRequest = {
    ...{ protocol, listen, writable },
    ...(options.openToHost === true && { openToHost: true }),
    ...(options.tls === true && { tls: true }),
  };
  if (chapSecretFile === undefined) return request;
  let secret: string;
  try {
    secret = readFileSync(chapSecretFile, 'utf8').trim();
  } catch (error) {
    throw badServe(`the secret cannot be read: ${messageOf(error)}`);
  }
  return { ...request, chap: { user: chapUser ?? volume.name, secret } };
}

function serveText(volume: VolumeView, { location, writable, chap }: ServeReply): string {
  const lines = [
    `${volume.name} is served ${writable ? 'for reading and writing' : 'read-only'}: ${location}`,
  ];
  if (chap) lines.push(`CHAP user ${chap.user}, secret ${chap.secret} (told this once)`);
  return lines.join('\n');
}

function badServe(reason: string): GodwitError {
  return new GodwitError('CLI_BAD_SERVE', `the volume cannot be served like that: ${reason}`, {
    nextAction: 'godwit volume serve --help',
  });
}

export async function destroy(
  context: Context,
  refs: string[],
  options: { force?: boolean; allCopies?: boolean },
): Promise<void> {
  const fleet = context.fleet();
  const destroyed: { volumeId: string; name: string; left: { worker: string; generation: number }[] }[] = [];
  const lines: string[] = [];
  let someAreAway = false;
  for (const ref of refs) {
    const { worker, volume } = await fleet.volume(ref);
    const copies = options.allCopies === true;
    await worker.client.destroyVolume(volume.id, { force: options.force === true, copies });
    const { items, unreachable } = await fleet.gather(async (each) =>
      (await each.client.listVolumes()).filter(({ id }) => id === volume.id).map((copy) => ({ each, copy })),
    );
    context.noteUnreachable(unreachable);
    someAreAway ||= unreachable.length > 0;
    const left: typeof items = [];
    for (const item of items) {
      if (!copies || item.copy.state !== 'retained') left.push(item);
      else await item.each.client.destroyVolume(volume.id, { force: true, copies });
    }
    destroyed.push({
      volumeId: volume.id,
      name: volume.name,
      left: left.map(({ each, copy }) => ({ worker: each.name, generation: copy.generation })),
    });
    lines.push(`${volume.name} destroyed; ${whatIsLeft(volume.id, left, unreachable.length > 0)}`);
  }
  context.result({ destroyed }, () => lines.join('\n'));
  // Nobody knows whether those were all.
  if (options.allCopies === true && someAreAway) throw new ExitWith(EXIT.unreachable);
}

/**
 * Where the data of a destroyed volume still is: nobody should have to guess whether that was the last of it.
 */
function whatIsLeft(
  volumeId: string,
  left: { each: { name: string }; copy: VolumeView }[],
  someAreAway: boolean,
): string {
  if (left.length === 0)
    return someAreAway ? 'no copy of it on the workers that answer' : 'no copy of it is left';
  const where = left.map(({ each, copy }) => `${each.name} (${copy.state}, generation ${copy.generation})`);
  return `what moves left of it is on ${where.join(', ')}: godwit volume recover ${volumeId} --as NAME has it back, godwit volume destroy ${volumeId} --all-copies gives it up`;
}

export async function acceptLoss(context: Context, ref: string, options: { yes?: boolean }): Promise<void> {
  const { worker, volume } = await context.fleet().volume(ref);
  const { dataLoss } = volume;
  if (!dataLoss) {
    throw new GodwitError('VOLUME_NO_SUCH_LOSS', `volume ${volume.name} has lost nothing`, {
      values: { volumeId: volume.id },
      nextAction: 'Nothing to do.',
    });
  }
  if (!options.yes) {
    throw new GodwitError(
      'CLI_INVALID_OPTIONS',
      `${volume.name} on ${worker.name} lost data at ${new Date(dataLoss.atMs).toISOString()} (${dataLoss.reason}): parts of what was written to it may be old`,
      {
        values: { volumeId: volume.id, reason: dataLoss.reason },
        nextAction:
          'Rather restore it from a backup or its retained source (godwit volume recover). To go on with what the disk has: `godwit volume accept-loss VOLUME --yes`.',
      },
    );
  }
  const after = await worker.client.acceptLoss(volume.id, { atMs: dataLoss.atMs });
  context.result(
    after,
    () =>
      `${after.name} goes on with what the disk of ${worker.name} has. Start its machine: its filesystem is checked then.`,
  );
}

export async function recover(
  context: Context,
  ref: string,
  options: { as: string; worker?: string },
): Promise<void> {
  const { items, unreachable } = await context.fleet().gather(async (worker) => {
    if (options.worker !== undefined && worker.name !== options.worker) return [];
    const kept = (await worker.client.listVolumes()).filter(
      ({ id, name, state }) => state === 'retained' && (id === ref || name === ref),
    );
    return kept.map((volume) => ({ worker, volume }));
  });
  context.noteUnreachable(unreachable);
  items.sort((left, right) => right.volume.generation - left.volume.generation);
  const [newest, next] = items;
  if (newest === undefined) {
    if (unreachable[0]) throw unreachable[0].error;
    throw new GodwitError('CLI_VOLUME_NOT_FOUND', `no worker keeps a sealed volume ${ref}`, {
      values: { ref },
      nextAction: 'godwit volume list --all shows what is kept; a copy goes when its retention is over.',
    });
  }
  if (next !== undefined && next.volume.id !== newest.volume.id) {
    throw new GodwitError('CLI_AMBIGUOUS_REF', `several volumes were called ${ref}`, {
      values: { ids: `${newest.volume.id} ${next.volume.id}` },
      nextAction: 'Use the id.',
    });
  }
  const recovered = await newest.worker.client.recoverVolume(newest.volume.id, { name: options.as });
  context.result(recovered, () =>
    [
      `${recovered.name} (${recovered.id}) on ${newest.worker.name} is what ${newest.volume.name} was when it left (generation ${newest.volume.generation})`,
      ...(recovered.encrypted
        ? [`Its key is that of ${newest.volume.id}: have it answer for ${recovered.id} too.`]
        : []),
    ].join('\n'),
  );
}
