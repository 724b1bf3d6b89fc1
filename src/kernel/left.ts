import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { systemErrorCode } from '../base/errors.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { replaceFileOfThisBoot } from '../sys/durable-file.ts';
import { removeStack } from './attached.ts';
import { removeExport } from './exported.ts';
import { systemKernelHost } from './host.ts';
import { KERNEL_STATE_FILE } from './names.ts';

/** What a shim has in the kernel, for who cleans up after it. */
type Left = Pick<OpeningSpec, 'volumeId' | 'volumeDir'> & {
  source: { targetIqn: string; host: string; port: number; initiatorIqn: string } | null;
  targetIqn: string | null;
};

/**
 * Takes down what a dead shim has left in the kernel. The filesystem is unmounted. Nothing to do where it had
 * nothing there.
 */
export async function cleanUpKernelPlane(runtimeDir: string, clock: Clock): Promise<void> {
  const left = await readLeft(runtimeDir);
  if (left !== null) {
    const { volumeId, volumeDir, source, targetIqn } = left;
    const host = systemKernelHost(clock);
    if (targetIqn !== null) {
      await removeExport({ volumeId, volumeDir, targetIqn }, host, clock);
    } else {
      await removeStack({ volumeId, volumeDir, source }, { host, clock });
    }
  }
  await forgetLeft(runtimeDir);
}

/** Reads that wait for the source of a dead shim's clone end in errors. */
export async function giveUpKernelSource(runtimeDir: string, clock: Clock): Promise<void> {
  const source = (await readLeft(runtimeDir))?.source;
  if (source) await systemKernelHost(clock).iscsi.logout(source);
}

async function readLeft(runtimeDir: string): Promise<Left | null> {
  let text: string;
  try {
    text = await readFile(join(runtimeDir, KERNEL_STATE_FILE), 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
  // Not made durable: a power cut leaves it empty, and nothing of what it named.
  return text.replaceAll('\0', '') === '' ? null : (JSON.parse(text) as Left);
}

/** Before anything is made. */
export async function noteLeft(runtimeDir: string, spec: OpeningSpec): Promise<void> {
  const { volumeId, volumeDir } = spec;
  const source = spec.kind === 'clone' ? spec.clone.source : null;
  const left: Left = {
    ...{ volumeId, volumeDir },
    source: source && {
      targetIqn: source.targetIqn,
      host: source.host,
      port: source.port,
      initiatorIqn: source.initiatorIqn,
    },
    targetIqn: spec.kind === 'export' ? spec.export.targetIqn : null,
  };
  await mkdir(runtimeDir, { recursive: true });
  const path = join(runtimeDir, KERNEL_STATE_FILE);
  await replaceFileOfThisBoot(path, `${JSON.stringify(left)}\n`);
}

/** When all of it is taken down. */
export async function forgetLeft(runtimeDir: string): Promise<void> {
  await rm(join(runtimeDir, KERNEL_STATE_FILE), { force: true });
}
