import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { GodwitError, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { ConfigTree } from './config-tree.ts';

const LIO_FOLDER = '/sys/kernel/config/target';

/** One export: one target with one portal, one initiator that may log in, and one disk that it may read. */
export type LioExport = {
  targetIqn: string;
  /** Address and port on which the kernel listens. Targets of one host share a port. */
  host: string;
  port: number;
  initiatorIqn: string;
  chapUser: string;
  chapSecret: string;
};

export type LioDisk = {
  /** A read-only block device. */
  device: string;
  /** What the initiator reads as the unit serial number (SPC-4 section 7.8.18): at most 253 characters. */
  serial: string;
};

const TPG = 'tpgt_1';
const LUN = 'lun_0';
/** Of iblock: a host bus adapter of one disk for each. */
const HBA_PREFIX = 'iblock_';

/**
 * The kernel's iSCSI target by configfs, without targetcli. Laid out as Documentation/target and
 * drivers/target/iscsi/iscsi_target_configfs.c have it:
 *
 *     core/iblock_<n>/<name>/{control,enable,wwn/vpd_unit_serial}        the disk
 *     iscsi/<iqn>/tpgt_1/{enable,attrib/…,np/<host>:<port>}              the target
 *     iscsi/<iqn>/tpgt_1/lun/lun_0/<name> → core/iblock_<n>/<name>       the disk of the target
 *     iscsi/<iqn>/tpgt_1/acls/<initiator>/{auth/…,lun_0/…}               who may see it, read-only
 *
 * All methods are idempotent. They reject `HOST_LIO_MISSING` where the kernel has no LIO or configfs is not
 * mounted, `HOST_LIO_FAILED` with the attribute that was refused, and as the `ConfigTree` does.
 */
export class Lio {
  readonly #tree: ConfigTree;
  readonly #root: string;

  constructor(tree: ConfigTree, root: string = LIO_FOLDER) {
    this.#tree = tree;
    this.#root = root;
  }

  /** Makes target, portal and grant, and opens it for logins. */
  async open(share: LioExport): Promise<void> {
    const tpg = this.#tpg(share.targetIqn);
    const acl = join(tpg, 'acls', share.initiatorIqn);
    await this.#do('make the target', async () => {
      await this.#tree.makeObject(join(this.#root, 'iscsi'));
      await this.#tree.makeObject(join(this.#root, 'iscsi', share.targetIqn));
      await this.#tree.makeObject(tpg);
      for (const [name, value] of [
        ['authentication', '1'],
        ['generate_node_acls', '0'],
        ['demo_mode_write_protect', '1'],
        // Longer than an initiator waits before it looks whether the session is alive.
        ['login_timeout', '30'],
      ] as const)
        await this.#tree.write(join(tpg, 'attrib', name), value);
      await this.#tree.makeObject(join(tpg, 'np', portal(share)));
      await this.#tree.makeObject(acl);
      await this.#tree.write(join(acl, 'auth', 'userid'), share.chapUser);
      await this.#tree.write(join(acl, 'auth', 'password'), share.chapSecret);
      await this.#tree.write(join(tpg, 'enable'), '1');
    });
  }

  /** Shows the disk to the one initiator, read-only. An initiator that is logged in has to look again. */
  async show(share: LioExport, disk: LioDisk): Promise<void> {
    const tpg = this.#tpg(share.targetIqn);
    const acl = join(tpg, 'acls', share.initiatorIqn);
    const { hba, backstore, name } = this.#backstore(share.targetIqn);
    if ((await this.#tree.list(join(acl, LUN))).length > 0) return;
    await this.#do('show the disk', async () => {
      await this.#tree.makeObject(hba);
      await this.#tree.makeObject(backstore);
      if ((await this.#tree.read(join(backstore, 'enable'))) !== '1') {
        // `readonly`: the kernel opens the device without the right to write.
        await this.#tree.write(join(backstore, 'control'), `udev_path=${disk.device},readonly=1`);
        await this.#tree.write(join(backstore, 'enable'), '1');
      }
      await this.#tree.write(join(backstore, 'wwn', 'vpd_unit_serial'), disk.serial);
      await this.#tree.makeObject(join(tpg, 'lun', LUN));
      await this.#tree.link(backstore, join(tpg, 'lun', LUN, name));
      await this.#tree.makeObject(join(acl, LUN));
      await this.#tree.link(join(tpg, 'lun', LUN), join(acl, LUN, LUN));
      await this.#tree.write(join(acl, LUN, 'write_protect'), '1');
    });
  }

  /** Ends sessions and removes all of the target, whatever of it is there. */
  async close(targetIqn: string): Promise<void> {
    const tpg = this.#tpg(targetIqn);
    const { hba, backstore } = this.#backstore(targetIqn);
    await this.#do('remove the target', async () => {
      const exists = (await this.#tree.list(join(this.#root, 'iscsi'))).includes(targetIqn);
      if (exists && (await this.#tree.list(join(this.#root, 'iscsi', targetIqn))).includes(TPG)) {
        await this.#tree.write(join(tpg, 'enable'), '0');
        for (const initiator of await this.#tree.list(join(tpg, 'acls'))) {
          const acl = join(tpg, 'acls', initiator);
          for (const mapped of (await this.#tree.list(acl)).filter((name) => name.startsWith('lun_'))) {
            for (const name of await this.#tree.list(join(acl, mapped)))
              if (name.startsWith('lun_')) await this.#tree.unlink(join(acl, mapped, name));
            await this.#tree.removeObject(join(acl, mapped));
          }
          await this.#tree.removeObject(acl);
        }
        for (const lun of await this.#tree.list(join(tpg, 'lun'))) {
          if (!lun.startsWith('lun_')) continue;
          for (const name of await this.#tree.list(join(tpg, 'lun', lun)))
            if (name.startsWith('godwit-')) await this.#tree.unlink(join(tpg, 'lun', lun, name));
          await this.#tree.removeObject(join(tpg, 'lun', lun));
        }
        for (const place of await this.#tree.list(join(tpg, 'np')))
          await this.#tree.removeObject(join(tpg, 'np', place));
        await this.#tree.removeObject(tpg);
      }
      await this.#tree.removeObject(join(this.#root, 'iscsi', targetIqn));
      await this.#tree.removeObject(backstore);
      await this.#tree.removeObject(hba);
    });
  }

  async isOpen(targetIqn: string): Promise<boolean> {
    return (await this.#tree.list(join(this.#root, 'iscsi'))).includes(targetIqn);
  }

  /** Whether an initiator is logged in, and what it has read. */
  async statistics(share: LioExport): Promise<{ sessions: number; bytesServed: number }> {
    const tpg = this.#tpg(share.targetIqn);
    const info = await this.#tree.read(join(tpg, 'acls', share.initiatorIqn, 'info')).catch(() => '');
    const megabytes = await this.#tree
      .read(join(tpg, 'lun', LUN, 'statistics', 'scsi_tgt_port', 'read_mbytes'))
      .catch(() => '0');
    return {
      sessions: info === '' || info.startsWith('No active iSCSI Session') ? 0 : 1,
      bytesServed: (Number(megabytes) || 0) * 2 ** 20,
    };
  }

  #tpg(targetIqn: string): string {
    return join(this.#root, 'iscsi', targetIqn, TPG);
  }

  #backstore(targetIqn: string): { hba: string; backstore: string; name: string } {
    const digest = createHash('sha256').update(targetIqn).digest();
    const hba = join(this.#root, 'core', `${HBA_PREFIX}${digest.readUInt32BE(0) >>> 1}`);
    const name = `godwit-${digest.toString('hex', 0, 12)}`;
    return { hba, backstore: join(hba, name), name };
  }

  async #do<Value>(what: string, work: () => Promise<Value>): Promise<Value> {
    try {
      return await work();
    } catch (cause) {
      if (isGodwitError(cause)) throw cause;
      const code = systemErrorCode(cause);
      const path = (cause as { path?: string }).path ?? '';
      if (code === 'ENOENT' && (await this.#tree.list(this.#root)).length === 0) {
        throw new GodwitError(
          'HOST_LIO_MISSING',
          `this kernel has no iSCSI target: ${this.#root} is missing`,
          {
            values: { folder: this.#root },
            nextAction:
              'Load it (modprobe iscsi_target_mod target_core_iblock) and mount configfs at /sys/kernel/config; `godwit doctor` says what is missing.',
            cause,
          },
        );
      }
      throw new GodwitError('HOST_LIO_FAILED', `LIO does not ${what}: ${messageOf(cause)}`, {
        values: { what, path, errno: code ?? null },
        nextAction:
          code === 'EADDRINUSE'
            ? 'Another program listens on the port of iSCSI; end it.'
            : 'The kernel log (dmesg) says why.',
        cause,
      });
    }
  }
}

function portal({ host, port }: Pick<LioExport, 'host' | 'port'>): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
