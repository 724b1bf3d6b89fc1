import { networkInterfaces } from 'node:os';
import { mustRunHere, runHere } from './host-program.ts';

/** Of the bridge, which is this process's own place in the network of the lab. */
const BRIDGE = 'lab0';
const BRIDGE_ADDRESS = '10.77.0.254';

/**
 * One Ethernet of the lab: a bridge in the network namespace of this process, a port for every member. A port
 * that is `isolated` still reaches the bridge itself, so a cut parts the members from one another and the lab
 * from none of them.
 */
export class Network {
  readonly #ports = new Set<string>();

  /** Throws unless this process has a network namespace of its own, with nothing in it. */
  static async create(): Promise<Network> {
    const others = Object.keys(networkInterfaces()).filter((name) => name !== 'lo');
    if (others.length > 0) {
      throw new Error(
        `the lab wants a network namespace of its own, and this one has ${others.join(', ')}: start it with npm run lab`,
      );
    }
    await mustRunHere(['ip', 'link', 'set', 'lo', 'up']);
    await mustRunHere(['ip', 'link', 'add', BRIDGE, 'type', 'bridge']);
    await mustRunHere(['ip', 'address', 'add', `${BRIDGE_ADDRESS}/24`, 'dev', BRIDGE]);
    await mustRunHere(['ip', 'link', 'set', BRIDGE, 'up']);
    return new Network();
  }

  /** A tap for a guest: its name. */
  async addTap(index: number): Promise<string> {
    const name = `tap${index}`;
    await mustRunHere(['ip', 'tuntap', 'add', 'dev', name, 'mode', 'tap']);
    await this.#plug(name);
    return name;
  }

  /** One end of a cable in the network namespace of a process, with an address. */
  async addNamespace(index: number, pid: number, address: string): Promise<void> {
    const name = `port${index}`;
    await mustRunHere([
      'ip',
      'link',
      'add',
      name,
      'type',
      'veth',
      'peer',
      'name',
      'vec0',
      'netns',
      String(pid),
    ]);
    const inside = ['nsenter', '--net', '--target', String(pid), '--', 'ip'];
    await mustRunHere([...inside, 'link', 'set', 'lo', 'up']);
    await mustRunHere([...inside, 'address', 'add', `${address}/24`, 'dev', 'vec0']);
    await mustRunHere([...inside, 'link', 'set', 'vec0', 'up']);
    await this.#plug(name);
  }

  /** No frame passes between two members any more, until `heal`. */
  async cut(): Promise<void> {
    await this.#isolate('on');
  }

  async heal(): Promise<void> {
    await this.#isolate('off');
  }

  async close(): Promise<void> {
    for (const name of [...this.#ports, BRIDGE]) await runHere(['ip', 'link', 'delete', name]);
  }

  async #isolate(state: 'on' | 'off'): Promise<void> {
    for (const name of this.#ports)
      await mustRunHere(['ip', 'link', 'set', name, 'type', 'bridge_slave', 'isolated', state]);
  }

  async #plug(name: string): Promise<void> {
    await mustRunHere(['ip', 'link', 'set', name, 'master', BRIDGE, 'up']);
    this.#ports.add(name);
  }
}
