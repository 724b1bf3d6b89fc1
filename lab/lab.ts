import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Guest } from './guest.ts';
import { FOLDER_VARIABLE, kind, slowness } from './kind.ts';
import { type Member, mustRun } from './member.ts';
import { NamespaceMember } from './namespace-member.ts';
import { Network } from './network.ts';

export type LabOptions = {
  guests: readonly {
    name: string;
    /** Of its disks; sparse files. */
    diskBytes: readonly number[];
    /** Default 512. */
    memoryMib?: number;
  }[];
  /** Members that are this machine, with a network of their own. */
  hosts?: readonly { name: string }[];
};

/**
 * Guests with kernels of their own, on one network, in a folder of this process. Start it where nothing else
 * is in the network namespace (`npm run lab` does); whatever happens, `close` ends every process and removes
 * every file.
 */
export class Lab {
  readonly folder: string;
  readonly network: Network;
  readonly #guests = new Map<string, Guest>();
  readonly #hosts = new Map<string, NamespaceMember>();

  private constructor(folder: string, network: Network) {
    this.folder = folder;
    this.network = network;
  }

  static async start(options: LabOptions): Promise<Lab> {
    const folder = process.env[FOLDER_VARIABLE] ?? (await mkdtemp(join(tmpdir(), 'godwit-lab-')));
    let lab: Lab | null = null;
    try {
      const network = await Network.create();
      await kind.prepare(folder);
      lab = new Lab(folder, network);
      let index = 0;
      for (const { name } of options.hosts ?? []) {
        index++;
        lab.#hosts.set(
          name,
          await NamespaceMember.create(network, { name, index, address: `10.77.0.${index}` }),
        );
      }
      for (const { name, diskBytes, memoryMib = 512 } of options.guests) {
        index++;
        const disks = diskBytes.map((_bytes, number) => join(folder, `${name}.disk${number}`));
        for (const [number, path] of disks.entries()) await makeDisk(path, diskBytes[number]!);
        const tap = await network.addTap(index);
        const address = `10.77.0.${index}`;
        lab.#guests.set(name, new Guest(kind, { name, address, tap, folder, disks, memoryMib }));
      }
      await Promise.all([...lab.#guests.values()].map((guest) => guest.boot()));
      return lab;
    } catch (error) {
      await lab?.close();
      throw error;
    }
  }

  guest(name: string): Guest {
    const guest = this.#guests.get(name);
    if (guest === undefined) throw new Error(`the lab has no guest ${name}`);
    return guest;
  }

  host(name: string): NamespaceMember {
    const host = this.#hosts.get(name);
    if (host === undefined) throw new Error(`the lab has no host ${name}`);
    return host;
  }

  get guests(): Guest[] {
    return [...this.#guests.values()];
  }

  get members(): Member[] {
    return [...this.#hosts.values(), ...this.#guests.values()];
  }

  /**
   * What a guest sends leaves so much later, and no faster than that (netem in its own kernel); the way to it
   * is as before. On a slow machine the rate is slower as well: what must happen while blocks are on their
   * way takes longer there.
   */
  async shape(guest: Guest, shape: { delayMs?: number; rateMbit?: number }): Promise<void> {
    const { delayMs = 0, rateMbit } = shape;
    const rate =
      rateMbit === undefined
        ? []
        : ['rate', `${Math.max(1, Math.round((rateMbit * 1000) / slowness()))}kbit`];
    await mustRun(guest, [
      ...['tc', 'qdisc', 'replace', 'dev', guest.card, 'root', 'netem'],
      ...['delay', `${delayMs}ms`, 'limit', '100000', ...rate],
    ]);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#guests.values()].map((guest) => guest.kill9()));
    for (const host of this.#hosts.values()) host.close();
    await this.network.close();
    // Who gave the folder looks at it first.
    if (process.env[FOLDER_VARIABLE] === undefined) await rm(this.folder, { recursive: true, force: true });
  }
}

async function makeDisk(path: string, bytes: number): Promise<void> {
  const file = await open(path, 'w');
  await file.truncate(bytes);
  await file.close();
}
