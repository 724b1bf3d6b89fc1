import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { DemoFleet } from './fleet.ts';

export type VerifiedReceipt = {
  file: string;
  machine: string;
  root: string;
  verified: boolean;
  output: string;
};

/**
 * Verifies every receipt of a folder as anybody can who has the files and knows the workers' keys: no worker
 * is asked.
 */
export async function verifyReceipts(
  fleet: DemoFleet,
  folder: string,
  fingerprints: readonly string[],
): Promise<VerifiedReceipt[]> {
  const receipts: VerifiedReceipt[] = [];
  for (const file of readdirSync(folder).sort()) {
    const keys = fingerprints.flatMap((fingerprint) => ['--key', fingerprint]);
    const { exitCode, output } = await fleet.offline([
      ...['--json', 'receipt', '--verify', join(folder, file)],
      ...keys,
    ]);
    const body = exitCode === 0 ? JSON.parse(output) : null;
    receipts.push({
      file,
      machine: body?.machine.name ?? '?',
      root: body?.root ?? '?',
      verified: body?.verified === true,
      output,
    });
  }
  return receipts;
}
